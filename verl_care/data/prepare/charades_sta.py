"""Charades-STA: the test split as on Hugging Face (``lmms-lab/charades_sta``, ``lmms-eval/charades_sta``: video,
caption, timestamp in seconds), or the lines of ``charades_sta_train.txt`` and ``charades_sta_test.txt``
(jiyanggao/TALL: ``AO8RW 0.0 6.9##a person …``). Clips: ``Charades_v1_480``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from verl_care.data.prepare.base import Fields, Item, Preparer
from verl_care.data.prompts import ask_when
from verl_care.rewards.scorer import GROUNDING

COLUMNS = frozenset(("video", "caption", "timestamp", "duration", "line"))

_LINE = re.compile(r"(\S+) (\S+) (\S+?)##(.+)")


def convert(fields: Fields, options: Mapping[str, Any]) -> Item:
    """A pair of clip and sentence."""
    if fields.has("line"):
        match = _LINE.fullmatch(fields.text("line"))
        if match is None:
            raise fields.error("line", f"got {fields.text('line')[:60]!r}", "write VIDEO START END##sentence")
        video, start, end, query = match.groups()
        fields = Fields({"video": video, "caption": query, "timestamp": [start, end]}, fields.where)
    video, query = fields.text("video"), fields.text("caption")
    return Item(
        id="",
        question=ask_when(query),
        problem_type=GROUNDING,
        spans=[fields.span("timestamp")],
        video=video,
        info={"query": query, "duration": fields.number("duration", None)},
    )


CHARADES_STA = Preparer(
    name="charades_sta",
    title="Charades-STA: when a sentence happens; 3,720 test pairs",
    kind="evaluation",
    files=("data/{split}*.parquet", "**/{split}*.parquet", "charades_sta_{split}.txt", "**/charades_sta_{split}.txt"),
    convert=convert,
    columns=COLUMNS,
    prompt="temporal_rlt",
    options={"split": ("all", "test", "train")},
)
