"""Benchmark records -> items: what is asked, what is right, and by what the scores are grouped. Pure.

A benchmark is a Parquet file as ``verl-care prepare`` writes it; ``data_source`` names it (see ``data.prepare``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_care.data.records import DataError, RecordError, check_record, missing_file
from verl_care.evaluation.interface import Question
from verl_care.evaluation.prompts import Messages, build_messages, options_of, reorder_options, without_media
from verl_care.rewards.scorer import GROUNDED_QA

BLIND = "#blind"
"""Added to the name of an item that is asked without its clip."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question of a benchmark."""

    key: str
    """Data source and index."""
    benchmark: str
    problem_type: str
    ground_truth: str
    options: tuple[str, ...]
    video: str
    """By which bootstraps cluster: the clip's published name, else its path, else the item's own name."""
    info: Mapping[str, Any]
    """``extra_info`` of the record."""
    messages: Messages
    reordered: bool | None = None
    """Whether its options were moved; None where nobody asked for it."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Items of one benchmark, in the order of the file."""

    name: str
    path: str
    items: tuple[Item, ...]


def read_benchmarks(
    paths: Sequence[str | Path], *, limit: int | None = None, option_seed: int | None = None
) -> list[Benchmark]:
    """Reads and checks prepared files; a file with several data sources gives as many benchmarks.

    Args:
        paths: Parquet files, or folders with ``test.parquet`` in them.
        limit: first so many items of each benchmark.
        option_seed: order of the options of multiple-choice questions; None leaves them.

    Raises:
        DataError: a file that is not there, cannot be read or has no records; a faulty record, or one that is there
            twice: names file and record.
    """
    found: dict[str, list[Item]] = {}
    sources: dict[str, str] = {}
    seen: dict[str, str] = {}
    for given in paths:
        path = Path(given) / "test.parquet" if Path(given).is_dir() else Path(given)
        for number, row in enumerate(_read_rows(path)):
            where = f"{path}, record {number}"
            key = check_record(row, where).prompt_key
            if key in seen:
                raise RecordError(f"{where}: {key} is there twice ({seen[key]}); drop one")
            seen[key] = where
            name = row["data_source"]
            if limit is not None and len(found.get(name, ())) >= limit:
                continue
            found.setdefault(name, []).append(build_item(row, option_seed))
            sources.setdefault(name, str(path))
    return [Benchmark(name=name, path=sources[name], items=tuple(items)) for name, items in found.items()]


def _read_rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists():
        raise missing_file(str(path))
    try:
        rows = pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read the file as Parquet: {error}") from error
    if not rows:
        raise DataError(f"{path}: no records in the file")
    return rows


def build_item(row: Mapping[str, Any], option_seed: int | None = None) -> Item:
    """The item of one checked record."""
    reordered = None
    if option_seed is not None and row["extra_info"]["problem_type"] in ("multiple choice", GROUNDED_QA):
        moved = reorder_options(row, option_seed)
        reordered = moved is not None
        row = moved or row
    info = {name: value for name, value in row["extra_info"].items() if value is not None}
    messages = build_messages(row)
    key = f"{row['data_source']}/{info['index']}"
    media = [part.get(part["type"]) for turn in messages for part in turn["content"] if part["type"] != "text"]
    path = media[0][0] if media and isinstance(media[0], list) else media[0] if media else None
    is_choice = info["problem_type"] in ("multiple choice", GROUNDED_QA)
    return Item(
        key=key,
        benchmark=row["data_source"],
        problem_type=info["problem_type"],
        ground_truth=row["reward_model"]["ground_truth"],
        options=tuple(options_of(row)) if is_choice else (),
        video=str(info.get("video_id") or path or key),
        info=info,
        messages=messages,
        reordered=reordered,
    )


def question_of(item: Item, *, blind: bool = False, available_frames: int | None = None) -> Question:
    """An item as an engine and a vote need it."""
    return Question(
        key=item.key + (BLIND if blind else ""),
        prompt=without_media(item.messages) if blind else item.messages,
        problem_type=item.problem_type,
        options=item.options,
        ground_truth=item.ground_truth,
        available_frames=available_frames,
        extra_info=item.info,
    )
