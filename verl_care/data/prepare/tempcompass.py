"""TempCompass (llyx97/TempCompass, ``questions/*.json``: ``{video: {aspect: [{question, answer}]}}``; Hugging Face
``lmms-eval/TempCompass``, one row a question with ``video_id`` and ``dim``). Four formats; multiple choice by default,
the options stand in the question. Caption matching has labels such as ``Sentence A``, which become letters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from verl_care.data.prepare.base import LETTERS, Fields, Item, Preparer
from verl_care.data.prepare.readers import read_file
from verl_care.data.records import DataError, RecordError

FORMATS = ("multi-choice", "yes_no", "caption_matching", "captioning")
ASPECTS = ("action", "direction", "speed", "order", "attribute_change")

COLUMNS = frozenset(("video_id", "question", "answer", "dim", "format", "mc_question", "mc_answer"))

# Two of the published questions lack the space.
_OPTION = re.compile(r"[A-Z][.)] ?\S")
_LABEL = re.compile(r"((?:Option|Sentence|Caption|Description|Statement) (?:\d|[A-Z])): (.+)")


def read(path: Path, options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Questions of one format, with its name: that of the file or of its folder."""
    named = [name for name in FORMATS if name in (path.stem, path.parent.name)]
    if not named:
        raise DataError(f"{path}: names no format of TempCompass; keep the published names, {', '.join(FORMATS)}")
    wanted = FORMATS if options["formats"] == "all" else (options["formats"],)
    if named[0] not in wanted:
        return
    for where, row in read_file(path):
        if isinstance(row, Mapping) and "question" in row:
            yield where, {**row, "format": named[0]}
            continue
        for video, aspects in Fields(row, where).record.items():
            for aspect, questions in Fields(aspects, f"{path}, record {video}").record.items():
                for number, question in enumerate(questions):
                    place = f"{path}, record {video}.{aspect}[{number}]"
                    if not isinstance(question, Mapping):
                        raise RecordError.at(place, "record", "expected question and answer", "mend the file")
                    yield place, {**question, "video_id": video, "dim": aspect, "format": named[0]}


def convert(fields: Fields, options: Mapping[str, Any]) -> Item:
    """A question of one format."""
    format_, aspect = fields.text("format"), fields.text("dim")
    if aspect not in ASPECTS:
        raise fields.error("dim", f"got {aspect!r}", f"set one of {', '.join(ASPECTS)}")
    question, answer = fields.text("question"), fields.text("answer")
    video = fields.name("video_id")
    listed: list[str] = []
    problem_type = "free-form"
    if format_ == "multi-choice":
        problem_type = "multiple choice"
        question, listed = _split_choice(fields, question)
        answer = answer[:1]
        if answer not in [option[0] for option in listed]:
            raise fields.error("answer", f"{fields.text('answer')[:40]!r} is not among the options", "mend the record")
    elif format_ == "caption_matching":
        problem_type = "multiple choice"
        question, listed, answer = _split_captions(fields, question, answer)
    elif format_ == "yes_no" and answer not in ("yes", "no"):
        raise fields.error("answer", f"got {answer!r}", "set yes or no")
    return Item(
        id="",
        question=question,
        problem_type=problem_type,
        answer=answer,
        options=listed,
        video=video,
        video_id=video,
        info={"format": format_, "aspect": aspect},
    )


def _split_choice(fields: Fields, text: str) -> tuple[str, list[str]]:
    lines = text.split("\n")
    listed = [line.strip() for line in lines[1:] if line.strip()]
    if len(listed) < 2 or not all(map(_OPTION.match, listed)):
        raise fields.error("question", "expected the question, then A. …, B. …, one a line", "mend the record")
    return lines[0].strip(), [f"{option[0]}. {option[2:].strip()}" for option in listed]


def _split_captions(fields: Fields, text: str, answer: str) -> tuple[str, list[str], str]:
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    labels = [_LABEL.fullmatch(line) for line in lines[1:]]
    if len(labels) < 2 or not all(labels):
        raise fields.error("question", "expected the question, then Sentence A: … and so on", "mend the record")
    found = [letter for letter, line in zip(LETTERS, lines[1:], strict=False) if line == answer]
    if not found:
        raise fields.error("answer", f"{answer[:40]!r} is not among the options", "mend the record")
    listed = [f"{letter}. {label[2]}" for letter, label in zip(LETTERS, labels, strict=False) if label]
    return lines[0], listed, found[0]


TEMPCOMPASS = Preparer(
    name="tempcompass",
    title="TempCompass: five temporal aspects; 1,580 questions of multiple choice",
    kind="evaluation",
    files=("questions/*.json", "*/test*.parquet", "*.json", "**/*.parquet"),
    convert=convert,
    columns=COLUMNS,
    read=read,
    options={"formats": ("multi-choice", "yes_no", "caption_matching", "captioning", "all")},
)
