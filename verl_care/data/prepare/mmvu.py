"""MMVU, validation split (yale-nlp/MMVU, ``data/validation.json``; Hugging Face ``yale-nlp/MMVU`` and
``lmms-eval/MMVU``, whose records have ``video_path``). The multiple-choice part, 625 of 1,000, is what Video-R1's
family reports; open answers need a judge.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_care.data.prepare.base import Fields, Item, Preparer

COLUMNS = frozenset(
    ("id", "video", "video_path", "youtube_url", "question_type", "metadata", "question", "choices", "answer")
)


def convert(fields: Fields, options: Mapping[str, Any]) -> Item | None:
    """A question with options; an open one only where the options ask for it."""
    kind = fields.text("question_type")
    if kind not in ("multiple-choice", "open-ended"):
        raise fields.error("question_type", f"got {kind!r}", "set multiple-choice or open-ended")
    if kind == "open-ended" and options["open"] == "no":
        return None
    choices = fields.mapping("choices")
    texts = [choices[letter] for letter in sorted(choices) if choices[letter]]
    listed = fields.add_letters("choices", texts) if kind == "multiple-choice" else []
    path = fields.text("video_path", None) or fields.text("video")
    name = path.rsplit("videos/", 1)[-1]
    return Item(
        id=fields.name("id"),
        question=fields.text("question"),
        problem_type="multiple choice" if listed else "free-form",
        answer=fields.letter("answer", listed) if listed else fields.name("answer"),
        options=listed,
        video=(name, f"videos/{name}"),
        video_id=name.rsplit(".", 1)[0],
        info={"question_type": kind, "subject": fields.mapping("metadata", {}).get("subject")},
    )


MMVU = Preparer(
    name="mmvu",
    title="MMVU validation, multiple choice: expert knowledge; 625 questions",
    kind="evaluation",
    files=("validation.json", "data/validation.json", "**/validation*.json*", "**/validation*.parquet"),
    convert=convert,
    columns=COLUMNS,
    options={"open": ("no", "yes")},
)
