"""Grounding in ActivityNet: Hugging Face ``appletea2333/activity_tvg`` (video, caption, timestamp, as Temporal-R1's
lmms-eval reads it), or ActivityNet Captions' own ``val_1.json`` and ``val_2.json``
(``{"v_…": {"duration", "timestamps", "sentences"}}``), whose spans may end a little after the clip.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from verl_care.data.prepare import charades_sta
from verl_care.data.prepare.base import Preparer
from verl_care.data.prepare.readers import read_file
from verl_care.data.records import RecordError


def read(path: Path, options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """One record a sentence, from either shape."""
    for where, record in read_file(path):
        clips = record if isinstance(record, Mapping) and "caption" not in record else None
        if clips is None or not all(isinstance(clip, Mapping) and "timestamps" in clip for clip in clips.values()):
            yield where, record
            continue
        for video, clip in clips.items():
            sentences, spans = clip.get("sentences"), clip["timestamps"]
            if not isinstance(sentences, list) or not isinstance(spans, list) or len(sentences) != len(spans):
                raise RecordError.at(f"{path}, record {video}", "sentences", "not one a timestamp", "mend the record")
            for number, (sentence, span) in enumerate(zip(sentences, spans, strict=True)):
                row = {"video": video, "caption": sentence, "timestamp": span, "duration": clip.get("duration")}
                yield f"{path}, record {video}[{number}]", row


ACTIVITYNET_TVG = Preparer(
    name="activitynet_tvg",
    title="ActivityNet grounding: when a sentence happens",
    kind="evaluation",
    files=("data/test*.parquet", "*.parquet", "val_2.json", "*.json*", "**/*.parquet"),
    convert=charades_sta.convert,
    columns=charades_sta.COLUMNS,
    read=read,
    prompt="temporal_rlt",
)
