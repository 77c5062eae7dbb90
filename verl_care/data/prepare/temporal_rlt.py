"""Training records of temporal grounding as Temporal-R1 reads them (appletea233/Temporal-R1, ``dataset_video.py``;
Hugging Face ``appletea2333/temporal_r1``): question, span as shares of the clip, length in seconds. Its records of
Charades have no length; the clip's own is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_care.data.prepare.base import Fields, Item, Preparer
from verl_care.rewards.scorer import GROUNDING

COLUMNS = frozenset(("dataset", "video", "problem", "solution", "video_length", "problem_type", "problem_id", "id"))


def convert(fields: Fields, options: Mapping[str, Any]) -> Item:
    """A record of Temporal-R1."""
    start, end = fields.span("solution")
    if end > 1:
        raise fields.error("solution", f"[{start:g}, {end:g}]: expected shares of the clip, at most 1", "divide by it")
    length = fields.number("video_length", None)
    if length is not None and length <= 0:
        raise fields.error("video_length", f"expected seconds > 0; got {length:g}", "mend the record")
    return Item(
        id="",
        question=fields.text("problem"),
        problem_type=GROUNDING,
        spans=[(start, end)],
        spans_normalised=True,
        video=fields.text("video"),
        source=fields.text("dataset", None),
        info={"duration": length},
    )


TEMPORAL_RLT = Preparer(
    name="temporal_rlt",
    title="temporal grounding in Temporal-R1's shape (Charades, ActivityNet)",
    kind="train",
    files=("*charades*train*.json*", "*.json", "*.jsonl", "**/*.json*"),
    convert=convert,
    columns=COLUMNS,
    prompt="temporal_rlt",
    split="train",
)
