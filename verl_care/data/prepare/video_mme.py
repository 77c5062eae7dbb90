"""Video-MME (Hugging Face ``lmms-eval/Video-MME``, ``videomme/test-*.parquet``), without and with subtitles
(``subtitle/<videoID>.srt``). Columns as lmms-eval's ``videomme`` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from verl_care.data.prepare.base import Fields, Item, Preparer
from verl_care.data.prepare.subtitles import Line, read_srt
from verl_care.data.records import DataError

CLASSES = ("short", "medium", "long")

COLUMNS = frozenset(
    ("video_id", "duration", "domain", "sub_category", "url", "videoID", "question_id", "task_type", "question")
    + ("options", "answer")
)

FILES = ("videomme/test*.parquet", "test*.parquet", "**/test*.parquet", "*.json*")


def convert(fields: Fields, options: Mapping[str, Any]) -> Item:
    """A question without subtitles."""
    duration = fields.text("duration")
    if duration not in CLASSES:
        raise fields.error("duration", f"got {duration!r}", f"set {', '.join(CLASSES)}")
    listed = fields.lettered("options")
    video = fields.text("videoID")
    return Item(
        id=fields.name("question_id"),
        question=fields.text("question"),
        problem_type="multiple choice",
        answer=fields.letter("answer", listed),
        options=listed,
        video=(video, f"data/{video}"),
        video_id=video,
        info={
            "duration_class": duration,
            "domain": fields.text("domain"),
            "sub_category": fields.text("sub_category"),
            "task_type": fields.text("task_type"),
        },
    )


def find_lines(folder: str, video: str, option: str = "subtitles") -> list[Line]:
    """Subtitles of a clip; none where the folder has no file for it, as published.

    Raises:
        DataError: no such folder.
    """
    if not folder or not Path(folder).is_dir():
        raise DataError(f"--set {option}: no such folder: {folder!r}; set it to the folder with <video>.srt")
    path = Path(folder) / f"{video}.srt"
    return read_srt(path) if path.exists() else []


def convert_with_subtitles(fields: Fields, options: Mapping[str, Any]) -> Item:
    """A question with the subtitles of its clip; their folder is ``subtitle`` beside or in source or videos."""
    folder = options["subtitles"]
    if not folder:
        near = (options["source"], options["source"].parent, options["videos"], options["videos"].parent)
        folder = next((str(path / "subtitle") for path in near if (path / "subtitle").is_dir()), "")
    return replace(convert(fields, options), subtitles=find_lines(folder, fields.text("videoID")))


VIDEO_MME = Preparer(
    name="video_mme",
    title="Video-MME without subtitles: short, medium, long; 2,700 questions",
    kind="evaluation",
    files=FILES,
    convert=convert,
    columns=COLUMNS,
)

VIDEO_MME_SUBTITLES = Preparer(
    name="video_mme_subtitles",
    title="Video-MME with the subtitles at the sampled frames",
    kind="evaluation",
    files=FILES,
    convert=convert_with_subtitles,
    columns=COLUMNS,
    options={"subtitles": "", "subtitle_frames": 32},
)
