"""What a preparer found in a record -> a row of verl's schema, and rows -> files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_care.data.prepare.base import Item, Preparer
from verl_care.data.prepare.subtitles import pick_lines
from verl_care.data.probe import Clip
from verl_care.data.prompts import build_prompt
from verl_care.data.records import RecordError, replace_file, strip_none, to_row, write_rows
from verl_care.rewards.scorer import GROUNDED_QA, GROUNDING

SUBTITLES = "This video's subtitles are listed below:\n{lines}\n"
"""lmms-eval, ``videomme/utils.py``."""


@dataclass(kw_only=True)
class Entry:
    """One record on its way."""

    index: int
    where: str
    item: Item
    media: str | None = None
    clip: Clip | None = None


def build_row(preparer: Preparer, entry: Entry, style: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a record whose clip was looked at; a supervised one has ``process`` beside verl's columns.

    Raises:
        RecordError: a record that would not train.
    """
    item, clip = entry.item, entry.clip
    info = {key: value for key, value in item.info.items() if value is not None}
    duration = info.get("duration") or (clip.duration if clip else None)
    spans = list(item.spans)
    if item.spans_normalised:
        if not duration:
            raise RecordError.at(entry.where, "video_length", "missing, and the clip was not looked at", "probe it")
        spans = [(start * duration, end * duration) for start, end in spans]
    preamble = item.preamble
    if item.subtitles is not None:
        lines = pick_lines(item.subtitles, clip.duration if clip else info.get("duration"), options["subtitle_frames"])
        info["subtitles"] = lines
        preamble += SUBTITLES.format(lines=lines)
    if duration and (item.spans_normalised or item.problem_type not in (GROUNDING, GROUNDED_QA)):
        # Published spans may end behind the file; its length would make a fault of that.
        info["duration"] = float(duration)
    names = [item.video] if isinstance(item.video, str) else item.video
    name = names[0] if names else item.image
    info |= {
        "id": item.id or str(entry.index),
        "question": item.question.strip(),
        "video_id": item.video_id or (os.path.splitext(name)[0] if name else None),
        "source": item.source or preparer.name,
        "split": options["split"],
        "media_hash": clip.digest if clip else None,
    }
    media: dict[str, Any] = {}
    if item.image is not None:
        media["images"] = [{"image": entry.media, **preparer.media.get("image", {})}]
    elif entry.media is not None:
        parts = [{"video_start": start, "video_end": end} for start, end in item.ranges]
        media["videos"] = [
            {"video": entry.media, **strip_none(part), **preparer.media.get("video", {})} for part in parts
        ]
    if style is None:
        # Temporal-RLT's system turn asks for JSON, which a letter alone is not.
        timed = item.problem_type in (GROUNDING, GROUNDED_QA)
        style = preparer.prompt if timed or preparer.prompt != "temporal_rlt" else "video_r1"
    system, user = build_prompt(
        style, item.question, item.problem_type, item.options, preamble=preamble, form=item.form
    )
    row = to_row(
        data_source=preparer.name,
        index=entry.index,
        question=user,
        problem_type=item.problem_type,
        ground_truth=_ground_truth(item, spans),
        options=item.options,
        system=system,
        extra_info={key: value for key, value in info.items() if value is not None},
        where=entry.where,
        **media,
    )
    return {**row, "process": item.process} if preparer.kind == "supervised" else dict(row)


def _ground_truth(item: Item, spans: Sequence[tuple[float, float]]) -> str:
    times = [[round(time, 3) for time in span] for span in spans]
    if item.problem_type == GROUNDING:
        return json.dumps(times)
    if item.problem_type == GROUNDED_QA:
        return json.dumps({"answer": item.answer, "spans": times})
    return item.answer


def write_part(preparer: Preparer, rows: Sequence[dict[str, Any]], path: Path) -> dict[str, Any]:
    if preparer.kind == "supervised":
        _write_supervised(rows, path)
    else:
        write_rows(rows, path)
    with path.open("rb") as file:
        return {"records": len(rows), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _write_supervised(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes ``messages`` for verl's sft trainer. Its data set hands media dicts on as they are, so none has a None."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = [
        {
            "data_source": row["data_source"],
            "messages": [
                *row["prompt"],
                {
                    "role": "assistant",
                    "content": f"{row['process'].strip()}\n<answer>{row['reward_model']['ground_truth']}</answer>",
                },
            ],
            "videos": row["videos"],
            "images": row["images"],
            "extra_info": row["extra_info"],
        }
        for row in rows
    ]
    text = pa.string()

    def struct(key: str, medium: str) -> Any:
        dicts = [entry for row in rows for entry in row[key]]
        names = sorted({name for entry in dicts for name in entry} - {medium})
        return pa.struct({medium: text, **{name: pa.infer_type([e[name] for e in dicts]) for name in names}})

    infos = [row["extra_info"] for row in rows]
    names = sorted({name for info in infos for name in info} - {"options"})
    schema = pa.schema(
        {
            "data_source": text,
            "messages": pa.list_(pa.struct({"role": text, "content": text})),
            "videos": pa.list_(struct("videos", "video")),
            "images": pa.list_(struct("images", "image")),
            "extra_info": pa.struct(
                {
                    "options": pa.list_(text),
                    **{name: pa.infer_type([info[name] for info in infos if name in info]) for name in names},
                }
            ),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as unfinished:
        pq.write_table(pa.Table.from_pylist(table, schema=schema), unfinished)
