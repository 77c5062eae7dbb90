"""CG-Bench (Hugging Face ``CG-Bench/CG-Bench``, gated): ``cgbench.json``, ``cgbench_mini.json``, and the list of 8,136
questions that Video-RTS trains on (Ziyang412/Video-RTS, ``src/training_data/cgbench_selected_training_samples.jsonl``).

Video-RTS' rows hold the options in the question, a letter with a point behind it, and the authors' own paths, of which
only the file name says anything. What CG-Bench is trained on is no test set any more; ``--set split=test`` prepares it
as one for those who train on other data.

Two more test sets are made of CG-Bench's own files, for the figures that need its clue intervals (CG-Bench/CG-Bench,
``run/utils.py``): ``cgbench_clue`` asks the questions over the clues alone, ``cgbench_miou`` asks where the clues are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from verl_care.data.prepare.base import Fields, Item, Preparer
from verl_care.rewards.parsing import find_answer
from verl_care.rewards.scorer import GROUNDING
from verl_care.rewards.spans import merge

COLUMNS = frozenset(
    ("qid", "video_uid", "question", "answer", "choices", "right_answer", "clue_intervals", "domain", "sub_category")
    + ("duration", "problem", "solution", "video", "original_answer")
)

_OPTION = re.compile(r"[A-Z]\. ")

# After the official prompt of this mode, in this package's answer tags.
_WHERE = (
    " Do not answer the question: please provide the intervals of the video, one to five, that hold what is needed to "
    'answer it, in seconds as JSON, {"spans": [[3.2, 7.0], [15.0, 18.5]]}, within the <answer> </answer> tags.'
)


def convert(fields: Fields, options: Mapping[str, Any]) -> Item:
    """A record of CG-Bench, or a row of Video-RTS' list."""
    return _of_video_rts(fields) if fields.has("problem") else _of_cgbench(fields)


def _of_cgbench(fields: Fields) -> Item:
    choices = fields.texts("choices")
    listed = fields.add_letters("choices", choices)
    uid = fields.name("video_uid")
    info: dict[str, Any] = {
        "domain": fields.text("domain", None),
        "sub_category": fields.text("sub_category", None),
        "duration": fields.number("duration", None),
        "clue_intervals": [list(span) for span in fields.spans("clue_intervals", [])] or None,
    }
    return Item(
        id=fields.name("qid"),
        question=fields.text("question"),
        problem_type="multiple choice",
        answer=fields.letter("right_answer", listed),
        options=listed,
        video=uid,
        video_id=uid,
        info=info,
    )


def convert_clue(fields: Fields, options: Mapping[str, Any]) -> Item:
    """A record of CG-Bench over its clue intervals."""
    item = _of_cgbench(fields)
    return replace(item, parts=merge(_clues(fields)))


def convert_miou(fields: Fields, options: Mapping[str, Any]) -> Item:
    """A record of CG-Bench that asks for its clue intervals."""
    item = _of_cgbench(fields)
    return replace(item, problem_type=GROUNDING, answer="", spans=merge(_clues(fields)), form=_WHERE)


def _clues(fields: Fields) -> list[tuple[float, float]]:
    found = fields.spans("clue_intervals")
    if not found:
        raise fields.error("clue_intervals", "expected at least one", "drop the record")
    return found


def _of_video_rts(fields: Fields) -> Item:
    lines = fields.text("problem").split("\n")
    first = next((number for number, line in enumerate(lines) if _OPTION.match(line)), len(lines))
    listed = [line.strip() for line in lines[first:] if line.strip()]
    if not first or len(listed) < 2 or not all(map(_OPTION.match, listed)):
        raise fields.error("problem", "expected the question, then A. …, B. …, one a line", "mend the record")
    letter = (find_answer(fields.text("solution")) or "").rstrip(".")
    if letter not in [option[0] for option in listed]:
        raise fields.error("solution", f"{letter!r} is not among the options", "mend the record")
    uid = fields.text("video").rsplit("/", 1)[-1].rsplit(".", 1)[0]
    return Item(
        id=fields.name("qid"),
        question="\n".join(lines[:first]).strip(),
        problem_type="multiple choice",
        answer=letter,
        options=listed,
        video=uid,
        video_id=uid,
        info={"duration": fields.number("duration", None)},
    )


CGBENCH = Preparer(
    name="cgbench",
    title="CG-Bench's multiple choice: Video-RTS' training list, or CG-Bench's own files",
    kind="train",
    files=("cgbench_selected_training_samples.jsonl", "cgbench.json", "cgbench_mini.json", "**/cgbench*.json*"),
    convert=convert,
    columns=COLUMNS,
    prompt="video_rts",
    options={"split": ("train", "test")},
)

_OWN_FILES = ("cgbench_mini.json", "cgbench.json", "**/cgbench*.json")

CGBENCH_CLUE = Preparer(
    name="cgbench_clue",
    title="CG-Bench's multiple choice over the clue intervals alone",
    kind="evaluation",
    files=_OWN_FILES,
    convert=convert_clue,
    columns=COLUMNS,
    prompt="video_rts",
)

CGBENCH_MIOU = Preparer(
    name="cgbench_miou",
    title="CG-Bench: in which intervals are the clues?",
    kind="evaluation",
    files=_OWN_FILES,
    convert=convert_miou,
    columns=COLUMNS,
    prompt="video_rts",
)
