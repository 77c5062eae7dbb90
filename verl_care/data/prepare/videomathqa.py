"""VideoMathQA (Hugging Face ``MBZUAI/VideoMathQA``, configs ``mcq`` and ``multi_binary``), ``videos/`` and
``subtitles/<videoID>.srt``. Fields as lmms-eval's ``videomathqa`` reads them. In ``multi_binary`` each distractor is a
question of its own with the right answer; a question counts when all its pairs are right (group by ``question_id``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from verl_care.data.prepare.base import Fields, Item, Preparer
from verl_care.data.prepare.readers import read_file
from verl_care.data.prepare.video_mme import CLASSES, find_lines
from verl_care.rewards.multiple_choice import split_option

CONFIGS = ("mcq", "multi_binary")


def read(path: Path, options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Records of the wanted config; a file whose path names none is taken to be of it."""
    named = [config for config in CONFIGS if config in (path.parent.name, path.stem.split("-")[0])]
    if not named or options["config"] in named:
        yield from read_file(path)


def convert(fields: Fields, options: Mapping[str, Any]) -> Item:
    """A question, or one of its pairs."""
    length = fields.text("length", None)
    if length is not None and length not in CLASSES:
        raise fields.error("length", f"got {length!r}", f"set {', '.join(CLASSES)}")
    texts = fields.texts("options")
    listed = fields.lettered("options") if all(map(split_option, texts)) else fields.add_letters("options", texts)
    question_id, video = fields.name("question_id"), fields.name("videoID")
    subtitles = find_lines(options["subtitles"], video) if options["subtitles"] else None
    return Item(
        id=question_id if options["config"] == "mcq" else "",
        question=fields.text("question"),
        problem_type="multiple choice",
        answer=fields.letter("answer", listed),
        options=listed,
        video=(video, f"videos/{video}"),
        video_id=video,
        subtitles=subtitles,
        info={
            "category": fields.text("category", None),
            "duration_class": length,
            "config": options["config"],
            "question_id": question_id,
        },
    )


VIDEOMATHQA = Preparer(
    name="videomathqa",
    title="VideoMathQA: mathematics in lessons; 420 questions",
    kind="evaluation",
    files=("mcq/test*.parquet", "*/test*.parquet", "**/*.parquet", "*.json*"),
    convert=convert,
    read=read,
    options={"config": CONFIGS, "subtitles": "", "subtitle_frames": 32},
)
