"""LongVideoBench, validation split (Hugging Face ``longvideobench/LongVideoBench``, gated): ``lvb_val.json`` with
``candidates``, or ``validation-*.parquet`` with ``option0`` to ``option4``; ``videos/`` and ``subtitles/``.

Many questions refer to a subtitle line. With ``--set subtitles=DIR`` the lines at the sampled frames stand in front of
the question; the official ``_i`` setting puts them between the frames, which one video in a prompt cannot do.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_care.data.prepare.base import Fields, Item, Preparer
from verl_care.data.prepare.subtitles import read_longvideobench

COLUMNS = frozenset(
    ("video_id", "question", "question_wo_referring_query", "candidates", "correct_choice", "position", "id", "level")
    + ("topic_category", "question_category", "video_path", "subtitle_path", "duration_group", "duration", "view_count")
    + ("starting_timestamp_for_subtitles", "option0", "option1", "option2", "option3", "option4", "type")
)


def convert(fields: Fields, options: Mapping[str, Any]) -> Item:
    """A question of the validation split; the test split's answers are not published."""
    if fields.has("candidates"):
        column, texts = "candidates", fields.texts("candidates")
    else:
        column, texts = "option0", [fields.text(f"option{number}") for number in range(5)]
        texts = [text for text in texts if text != "N/A"]
    listed = fields.add_letters(column, texts)
    choice = fields.integer("correct_choice")
    if not 0 <= choice < len(listed):
        raise fields.error("correct_choice", f"{choice} is not among the {len(listed)} options", "mend the record")
    duration = fields.number("duration")
    lines = None
    if options["subtitles"]:
        path = Path(options["subtitles"]) / fields.text("subtitle_path")
        if not path.exists():
            raise fields.error("subtitle_path", f"no such file: {path}", "fetch subtitles.tar")
        lines = read_longvideobench(path, fields.number("starting_timestamp_for_subtitles"), duration)
    path_ = fields.text("video_path")
    return Item(
        id=fields.name("id"),
        question=fields.text("question"),
        problem_type="multiple choice",
        answer=listed[choice][0],
        options=listed,
        video=(path_, f"videos/{path_}"),
        video_id=fields.name("video_id", None) or path_.rsplit(".", 1)[0],
        subtitles=lines,
        info={
            "question_category": fields.text("question_category"),
            "duration_group": fields.integer("duration_group"),
            "duration": duration,
        },
    )


LONGVIDEOBENCH = Preparer(
    name="longvideobench",
    title="LongVideoBench validation: up to an hour, refers to subtitles; 1,337 questions",
    kind="evaluation",
    files=("lvb_val.json", "validation*.parquet", "**/lvb_val.json", "**/validation*.parquet"),
    convert=convert,
    columns=COLUMNS,
    split="validation",
    options={"subtitles": "", "subtitle_frames": 32},
)
