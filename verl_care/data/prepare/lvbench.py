"""LVBench: ``video_info.meta.jsonl`` (Hugging Face ``THUDM/LVBench``; one line a video, its questions under ``qa``), or
``lmms-eval/LVBench``'s Parquet with ``video_path``. Options stand in the question as ``(A) …``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from verl_care.data.prepare.base import Fields, Item, Preparer
from verl_care.data.prepare.readers import read_file

COLUMNS = frozenset(
    ("key", "uid", "question", "options", "answer", "question_type", "time_reference", "type", "video_path")
    + ("video_info", "qa")
)

_OPTION = re.compile(r"\s*\(([A-Z])\)\s*(.+)")


def read(path: Path, options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """One record a question, from either shape."""
    for where, row in read_file(path):
        if not isinstance(row, Mapping) or "qa" not in row:
            yield where, row
            continue
        fields = Fields(row, where, COLUMNS)
        for number, question in enumerate(fields.value("qa")):
            place = f"{where}, qa[{number}]"
            # The video's own type is another thing than the question's.
            yield place, {"key": fields.name("key"), **Fields(question, place).record}


def convert(fields: Fields, options: Mapping[str, Any]) -> Item:
    """A question about a film."""
    question = fields.text("question")
    listed = fields.texts("options", [])
    if listed:
        listed = fields.add_letters("options", [re.sub(r"^\([A-Z]\)\s*", "", option) for option in listed])
    else:
        lines = question.split("\n")
        labels = [_OPTION.fullmatch(line) for line in lines]
        first = next((number for number, label in enumerate(labels) if label), len(lines))
        found = [label for label in labels[first:] if label]
        if not first or len(found) < 2 or len(found) != sum(bool(line.strip()) for line in lines[first:]):
            raise fields.error("question", "expected the question, then (A) …, (B) …, one a line", "mend the record")
        question = "\n".join(lines[:first]).strip()
        listed = [f"{label[1]}. {label[2].strip()}" for label in found]
    path = fields.text("video_path", None) or fields.name("key")
    kinds = fields.value("question_type", None)
    return Item(
        id=f"{path.rsplit('/', 1)[-1].rsplit('.', 1)[0]}_{fields.name('uid')}" if fields.has("uid") else "",
        question=question,
        problem_type="multiple choice",
        answer=fields.letter("answer", listed),
        options=listed,
        video=(path, f"videos/{path}"),
        video_id=path.rsplit("/", 1)[-1].rsplit(".", 1)[0],
        info={
            "question_type": [kinds] if isinstance(kinds, str) else kinds,
            "time_reference": fields.text("time_reference", None),
        },
    )


LVBENCH = Preparer(
    name="lvbench",
    title="LVBench: films of half an hour and more; 1,549 questions",
    kind="evaluation",
    files=("video_info.meta.jsonl", "**/video_info.meta.jsonl", "**/*.parquet"),
    convert=convert,
    columns=COLUMNS,
    read=read,
)
