"""VSI-Bench (Hugging Face ``nyu-visionx/VSI-Bench``): ``test.jsonl`` or ``test-*.parquet``, videos as
``<dataset>/<scene_name>.mp4``. Fields as lmms-eval's ``vsibench`` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_care.data.prepare.base import Fields, Item, Preparer

CHOICE_TYPES = (
    "object_rel_direction_easy",
    "object_rel_direction_medium",
    "object_rel_direction_hard",
    "object_rel_distance",
    "route_planning",
    "obj_appearance_order",
)
NUMBER_TYPES = ("object_abs_distance", "object_counting", "object_size_estimation", "room_size_estimation")

COLUMNS = frozenset(
    ("id", "dataset", "scene_name", "question_type", "question", "options", "ground_truth", "mc_answer", "pruned")
)


def convert(fields: Fields, options: Mapping[str, Any]) -> Item:
    """A question with options, or one for a number."""
    kind = fields.text("question_type")
    if kind not in (*CHOICE_TYPES, *NUMBER_TYPES):
        raise fields.error("question_type", f"got {kind!r}", f"set one of {', '.join((*CHOICE_TYPES, *NUMBER_TYPES))}")
    scene = f"{fields.text('dataset')}/{fields.name('scene_name')}"
    listed = fields.lettered("options") if kind in CHOICE_TYPES else []
    if kind in CHOICE_TYPES:
        answer = fields.letter("ground_truth", listed)
    else:
        fields.number("ground_truth")
        answer = str(fields.value("ground_truth"))
    return Item(
        id=fields.name("id"),
        question=fields.text("question"),
        problem_type="multiple choice" if listed else "regression",
        answer=answer,
        options=listed,
        video=scene,
        video_id=scene,
        source=fields.text("dataset"),
        info={"question_type": kind, "dataset": fields.text("dataset"), "scene_name": fields.name("scene_name")},
    )


VSI_BENCH = Preparer(
    name="vsi_bench",
    title="VSI-Bench: space and number in indoor scenes; 5,130 questions",
    kind="evaluation",
    files=("test.jsonl", "test*.parquet", "**/test*.parquet", "**/test*.jsonl"),
    convert=convert,
    columns=COLUMNS,
)
