"""Video-R1's records: ``Video-R1-260k.json`` (RL) and ``Video-R1-COT-165k.json`` (supervised), Hugging Face
``Video-R1/Video-R1-data``, and ``Video-R1-Holmes-16k.json``, the mix with Video-Holmes' training films that Video-KTR
trains on (arXiv 2601.19686 names 16,916 records). Fields as ``grpo.py`` and ``sft_video.py`` of tulerfeng/Video-R1 read
them; media lie below ``--videos`` under the published paths (``./CLEVRER/train/…``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_care.data.prepare.base import Fields, Item, Preparer
from verl_care.rewards.multiple_choice import split_option
from verl_care.rewards.parsing import find_answer

PROBLEM_TYPES = ("multiple choice", "numerical", "OCR", "free-form", "regression")

COLUMNS = frozenset(
    ("problem_id", "problem", "data_type", "problem_type", "options", "solution", "path", "data_source", "process")
)

# What really applied in training (conf/care_dataset/video_r1.yaml); stock verl's supervised data set takes sampling
# from the media dicts alone.
SUPERVISED_MEDIA = {
    "video": {"fps": 2.0, "min_frames": 4, "max_frames": 16, "min_pixels": 100352, "max_pixels": 105369},
    "image": {"max_pixels": 200704},
}

_THINK = re.compile(r"\s*<think>.*</think>\s*", re.DOTALL)


def is_evaluation_file(path: Path) -> bool:
    """Whether a file is one of Hugging Face ``Video-R1/Video-R1-eval``: a benchmark's questions as Video-R1's records.

    The family's tables come from these (``eval_mvbench.json`` and so on); they have nothing by which a benchmark groups
    its questions, only its overall score can be had.
    """
    return path.name.startswith("eval_") and path.suffix == ".json"


def convert(fields: Fields, options: Mapping[str, Any]) -> Item:
    """A record of Video-R1."""
    problem_type = fields.text("problem_type")
    if problem_type not in PROBLEM_TYPES:
        raise fields.error("problem_type", f"got {problem_type!r}", f"set one of {', '.join(PROBLEM_TYPES)}")
    listed = fields.texts("options", [])
    letters = [label[0] if (label := split_option(option)) else None for option in listed]
    if None in letters:
        number = letters.index(None)
        raise fields.error(f"options[{number}]", f"{listed[number]!r} has no letter", "write A. …, B. …")
    solution = fields.text("solution")
    answer = find_answer(solution)
    if not answer:
        raise fields.error("solution", f"expected <answer>…</answer>; got {solution[:60]!r}", "mend the record")
    if problem_type == "multiple choice" and answer not in letters:
        raise fields.error(
            "solution", f"{answer!r} is not among the options {', '.join(map(str, letters))}", "mend the record"
        )
    data_type = fields.text("data_type")
    if data_type not in ("video", "image"):
        raise fields.error("data_type", f"got {data_type!r}", "set video or image")
    path = fields.text("path").removeprefix("./")
    return Item(
        # Whether problem_id alone is unique in every published file is not documented.
        id=f"{path}#{fields.name('problem_id')}",
        # Not stripped: the published prompt joins it with "Options:" as it is.
        question=str(fields.value("problem")) if fields.text("problem") else "",
        problem_type=problem_type,
        answer=answer,
        options=listed,
        source=fields.text("data_source", None),
        process=fields.text("process", None),
        **{data_type: path},  # type: ignore[arg-type]
    )


def convert_supervised(fields: Fields, options: Mapping[str, Any]) -> Item:
    """A record with a chain of thought."""
    process = fields.text("process")
    if not _THINK.fullmatch(process):
        raise fields.error("process", "expected <think>…</think>", "mend or drop the record")
    return convert(fields, options)


VIDEO_R1 = Preparer(
    name="video_r1",
    title="Video-R1-260k: images and videos, five problem types",
    kind="train",
    files=("Video-R1-260k.json", "**/Video-R1-260k.json"),
    convert=convert,
    columns=COLUMNS,
    split="train",
)

VIDEO_R1_COT = Preparer(
    name="video_r1_cot",
    title="Video-R1-COT-165k: chains of thought for the supervised start",
    kind="supervised",
    files=("Video-R1-COT-165k.json", "**/Video-R1-COT-165k.json"),
    convert=convert_supervised,
    columns=COLUMNS,
    split="train",
    media=SUPERVISED_MEDIA,
)

VIDEO_HOLMES_MIX = Preparer(
    name="video_holmes_mix",
    title="Video-R1-Holmes-16k: Video-R1 with Video-Holmes' training films, as in Video-KTR",
    kind="train",
    files=("Video-R1-Holmes-16k.json", "**/Video-R1-Holmes-16k.json"),
    convert=convert,
    columns=COLUMNS,
    split="train",
)
