"""Does a training set overlap an evaluation set: by video id, by file, by question. Never by the data sets' names.

Overlaps that are known from the papers' own sources stand in ``leakage.json``; they are told, what refuses is what was
found.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from verl_care.data.records import DataError
from verl_care.data.val_sets import is_test_row
from verl_care.rewards.multiple_choice import split_option

VIDEO_ID = "video id"
FILE = "file"
QUESTION = "question"

WAYS = (VIDEO_ID, FILE, QUESTION)
"""By what an overlap is found."""

MIN_WORDS = 8
"""A question without options counts from this many words on: shorter ones are asked about many clips."""

_SUFFIX = re.compile(r"\.(mp4|mkv|webm|avi|mov|jpe?g|png|webp|bmp|gif)$", re.IGNORECASE)
_CHARADES_PART = re.compile(r"([A-Z0-9]{5})_\d+(?:\.\d+)?_\d+(?:\.\d+)?")
_YOUTUBE = re.compile(r"v_([\w-]{11})(?:_\d+(?:\.\d+)?_\d+(?:\.\d+)?)?")
# Names that say nothing without their folder: a few digits, alone or behind a word.
_GENERIC = re.compile(r"[a-z]*[_-]?\d{1,4}", re.IGNORECASE)
_WORD = re.compile(r"\w+")
_FIELDS = ("index", "split", "question", "options", "video_id", "media_hash")


def video_key(name: str) -> str:
    """A clip's name as other data sets would have it too.

    The last part of the path without its suffix; Charades' segments and ActivityNet's ``v_`` by the video they are of;
    a name of up to four digits with its folder.

    Args:
        name: published id or path.
    """
    parts = [part for part in _SUFFIX.sub("", name.replace("\\", "/")).split("/") if part not in ("", ".")]
    stem = parts[-1] if parts else ""
    match = _CHARADES_PART.fullmatch(stem) or _YOUTUBE.fullmatch(stem)
    if match:
        return match[1]
    return "/".join(parts[-2:]).lower() if _GENERIC.fullmatch(stem) else stem


def question_key(question: str, options: Sequence[str] = ()) -> str | None:
    """A question as others would word it too: case, punctuation, spacing and the order of the options do not count.

    Args:
        question: as published.
        options: ``A. …`` each, or empty.

    Returns:
        None for a short question without options: the same words are asked about many clips.
    """
    words = _words(question)
    if not options:
        return " ".join(words) if len(words) >= MIN_WORDS else None
    texts = sorted(" ".join(_words((split_option(option) or ("", option))[1])) for option in options)
    return " | ".join((" ".join(words), *texts))


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


@dataclass(frozen=True, kw_only=True)
class Trace:
    """By what one record is known again."""

    record: str
    """Data source and index."""
    video_id: str | None = None
    file: str | None = None
    question: str | None = None

    def keys(self) -> list[tuple[str, str]]:
        """The ways by which it is known, each with its key."""
        values = ((VIDEO_ID, self.video_id), (FILE, self.file), (QUESTION, self.question))
        return [(way, value) for way, value in values if value]


def trace_row(row: Mapping[str, Any]) -> Trace | None:
    """The trace of a prepared record; None for one that says nothing by which it could be known again."""
    info = row.get("extra_info") or {}
    question, video = info.get("question"), info.get("video_id")
    trace = Trace(
        record=f"{row.get('data_source')}/{info.get('index')}",
        video_id=video_key(video) if isinstance(video, str) else None,
        file=info.get("media_hash") or None,
        question=question_key(question, info.get("options") or ()) if isinstance(question, str) else None,
    )
    return trace if trace.keys() else None


def read_traces(path: str | Path, tests_only: bool = False) -> list[Trace]:
    """Traces of the records in a prepared file; those of a development split do not count.

    Args:
        path: the file.
        tests_only: only records of a test set.

    Raises:
        DataError: a file that cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if "extra_info" not in file.schema_arrow.names:
                return []
            rows = file.read(columns=["data_source", *(f"extra_info.{name}" for name in _FIELDS)]).to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read the file as Parquet: {error}") from error
    infos = ((row, row.get("extra_info") or {}) for row in rows)
    kept = (row for row, info in infos if (is_test_row(info) if tests_only else info.get("split") != "dev"))
    return [trace for trace in map(trace_row, kept) if trace]


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What a training set shares with an evaluation set."""

    train: str
    evaluation: str
    counts: Mapping[str, int]
    """Way -> records of the training set."""
    records: int
    """Records of the training set, each counted once."""
    tests: int
    """Records of the evaluation set, each counted once."""
    examples: tuple[tuple[str, str, str], ...] = field(default=())
    """Record of the training set, record of the evaluation set, way."""

    def __str__(self) -> str:
        ways = ", ".join(f"{self.counts[way]} by {way}" for way in WAYS if self.counts.get(way))
        first = "; ".join(f"{ours} and {theirs} by {way}" for ours, theirs, way in self.examples)
        return (
            f"{self.train} overlaps {self.evaluation}: {self.records} training records ({ways}) and {self.tests} test "
            f"records; for example {first}"
        )


def find_overlap(
    train: Iterable[Trace], evaluation: Iterable[Trace], train_name: str, evaluation_name: str
) -> Overlap | None:
    """What two sets share, or None.

    Args:
        train: traces of the training set.
        evaluation: traces of the evaluation set.
        train_name: for the message.
        evaluation_name: for the message.
    """
    by_key: dict[tuple[str, str], list[str]] = {}
    for trace in evaluation:
        for key in trace.keys():
            by_key.setdefault(key, []).append(trace.record)
    counts: Counter[str] = Counter()
    records, tests = 0, set()
    examples: dict[str, tuple[str, str, str]] = {}
    for trace in train:
        shared = [key for key in trace.keys() if key in by_key]
        for key in shared:
            counts[key[0]] += 1
            tests.update(by_key[key])
            examples.setdefault(key[0], (trace.record, by_key[key][0], key[0]))
        records += bool(shared)
    if not records:
        return None
    return Overlap(
        train=train_name,
        evaluation=evaluation_name,
        counts=dict(counts),
        records=records,
        tests=len(tests),
        examples=tuple(examples[way] for way in WAYS if way in examples),
    )


def compare_files(train: Iterable[str | Path], evaluation: Iterable[str | Path]) -> list[Overlap]:
    """What prepared training files share with prepared evaluation files, and with test sets prepared beside the former.

    Args:
        train: Parquet files; what is no prepared file has no traces and overlaps nothing.
        evaluation: Parquet files; their records of test sets count.

    Raises:
        DataError: a file that cannot be read.
    """
    tests = [Path(path) for path in evaluation]
    ours: dict[Path, list[Trace]] = {}
    for path in map(Path, train):
        ours[path] = read_traces(path)
        tests += sorted(path.absolute().parent.parent.glob("*/test.parquet")) if ours[path] else []
    found: list[Overlap | None] = []
    for test in dict.fromkeys(path.absolute() for path in tests):
        traces = read_traces(test, tests_only=True) if any(ours.values()) else []
        for path, own in ours.items():
            found.append(find_overlap(own, traces, str(path), str(test)))
    return [overlap for overlap in found if overlap]


@cache
def known_overlaps() -> tuple[Mapping[str, str], ...]:
    """What is known of the published sets: training set, evaluation set, what they share, where that is said."""
    text = (files("verl_care.data") / "leakage.json").read_text(encoding="utf-8")
    return tuple(json.loads(text)["known"])
