"""VideoMMMU (Hugging Face ``lmms-eval/VideoMMMU``, configs Perception, Comprehension, Adaptation), videos in folders by
field of study. Fields as lmms-eval's ``videommmu`` reads them; the questions' pictures are the clips' last frames.

``video_mmmu_question_only`` asks the questions of Adaptation over clips of the picture alone (``question_only/``, as
lmms-eval's ``adaptation_question_only`` does): what is known before the lecture, for Δknowledge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from verl_care.data.prepare.base import LETTERS, Fields, Item, Preparer
from verl_care.data.prepare.readers import read_file
from verl_care.data.records import DataError
from verl_care.rewards.multiple_choice import split_option

TRACKS = ("Perception", "Comprehension", "Adaptation")

CATEGORIES = {
    "Art": ("Art", "Art_Theory", "Design", "Music"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Humanities": ("History", "Literature", "Sociology", "Psychology"),
    "Engineering": ("Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics")
    + ("Energy_and_Power", "Materials", "Mechanical_Engineering"),
    "Medicine": ("Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine", "Pharmacy")
    + ("Public_Health",),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
}
"""Folder of the videos -> subjects (lmms-eval, ``videommmu/utils.py``, ``get_cache_dir``)."""

_CATEGORY_OF = {subject: category for category, subjects in CATEGORIES.items() for subject in subjects}

_LEARN = "You should watch and learn the video content. Then apply what you learned to answer the following "
_PREAMBLES = {
    "multiple choice": f"{_LEARN}multi-choice question. The image for this question is at the end of the video.\n",
    "free-form": f"{_LEARN}open-ended question. The image for this question is at the end of the video.\n",
}
# lmms-eval has this behind the options; in front, it goes with every style of prompt.
_IGNORE = "Please ignore the Quiz question in last frame of the video.\n"


def read(path: Path, options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Records of one config, with its name."""
    named = [track for track in TRACKS if track.lower() in (path.parent.name.lower(), path.stem.lower())]
    if not named:
        raise DataError(f"{path}: names none of {', '.join(TRACKS)}; keep the folders of the published configs")
    for where, row in read_file(path):
        yield where, {**row, "track": named[0]}


def convert(fields: Fields, options: Mapping[str, Any]) -> Item:
    """A question of one track."""
    name, track = fields.text("id"), fields.text("track")
    subject = "_".join(name.split("_")[1:-1])
    if subject not in _CATEGORY_OF:
        raise fields.error("id", f"{name!r} names no subject", "write SPLIT_SUBJECT_NUMBER")
    texts = fields.texts("options", [])
    listed = list(texts) if all(map(split_option, texts)) else fields.add_letters("options", texts)
    kind = fields.text("question_type", "multiple-choice" if listed else "open")
    if listed:
        answer = fields.text("answer")
        letter = answer if answer in LETTERS[: len(listed)] else fields.letter_of("answer", texts)
        problem_type = "multiple choice"
    else:
        letter, problem_type = fields.name("answer"), "free-form"
    return Item(
        # An id is there once in each track.
        id=f"{track}/{name}",
        question=fields.text("question"),
        problem_type=problem_type,
        answer=letter,
        options=listed,
        video=(f"{_CATEGORY_OF[subject]}/{name}", name),
        video_id=name,
        preamble=_PREAMBLES[problem_type] if track == "Adaptation" else _IGNORE,
        info={"track": track, "question_type": kind, "subject": subject, "category": _CATEGORY_OF[subject]},
    )


def convert_question_only(fields: Fields, options: Mapping[str, Any]) -> Item | None:
    """A question of Adaptation over its picture alone; none for the other tracks."""
    if fields.text("track") != "Adaptation":
        return None
    item = convert(fields, options)
    name = f"{item.video_id}_image"
    return replace(item, video=(f"question_only/{name}", name), preamble="")


VIDEO_MMMU = Preparer(
    name="video_mmmu",
    title="VideoMMMU: learning from lectures, three tracks; 900 questions",
    kind="evaluation",
    files=("[PCA]*ion/test*.parquet", "**/*.parquet", "**/*.json*"),
    convert=convert,
    read=read,
)

VIDEO_MMMU_QUESTION_ONLY = replace(
    VIDEO_MMMU,
    name="video_mmmu_question_only",
    title="VideoMMMU: the questions of Adaptation without their lectures; 300 questions",
    convert=convert_question_only,
)
