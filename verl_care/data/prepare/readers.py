"""Records of published files: JSON, JSON lines, CSV, Parquet, lines of text, a folder saved by ``datasets``."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from verl_care.data.records import DataError, RecordError, decode_batch

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".txt")
"""What ``read_file`` reads; a ``.txt`` file is one record a line, under the key ``line``."""

_ARROW_FOLDER = ("dataset_info.json", "dataset_dict.json")
_BATCH = 1024


def find_files(source: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Files of a published data set.

    Args:
        source: the file itself, or the folder that was downloaded.
        patterns: where the file may lie in the folder, the likeliest first; the first pattern with a match counts.

    Raises:
        DataError: nothing there.
    """
    if source.is_file() or is_saved_dataset(source):
        return [source]
    if not source.exists():
        raise DataError(f"{source}: no such file or folder; set --source to what was downloaded")
    for pattern in patterns:
        found = sorted(path for path in source.glob(pattern) if path.is_file() or is_saved_dataset(path))
        if found:
            return found
    raise DataError(f"{source}: none of {', '.join(patterns)} in the folder; set --source to the file itself")


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder was written by ``datasets``' ``save_to_disk``."""
    return path.is_dir() and any((path / name).is_file() for name in _ARROW_FOLDER)


def read_file(path: Path) -> Iterator[tuple[str, Any]]:
    """Records of a file in its order, each with its name for messages.

    JSON may be a list of records, or an object; an object counts as one record. Text that is not UTF-8 comes with lone
    surrogates in it, which ``check_text`` finds; in Parquet it is an error at once.

    Args:
        path: a file with one of ``SUFFIXES``, or a folder written by ``save_to_disk``.

    Raises:
        DataError: a file that cannot be read, or of another kind.
    """
    try:
        for number, record in enumerate(_records(path)):
            yield f"{path}, record {number}", record
    except (OSError, csv.Error) as error:
        raise DataError(f"{path}: cannot read the file: {error}") from error


def _records(path: Path) -> Iterator[Any]:
    if path.is_dir():
        yield from _read_saved(path)
    elif path.suffix == ".parquet":
        yield from _read_parquet(path)
    elif path.suffix in SUFFIXES:
        # Bytes that are no UTF-8 become lone surrogates, which `check_text` finds in the record they stand in.
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
        if path.suffix == ".csv":
            yield from _read_csv(text, path)
        elif path.suffix == ".txt":
            yield from ({"line": line} for line in text.splitlines() if line.strip())
        else:
            yield from _read_json(text, path)
    else:
        raise DataError(f"{path}: a file of kind {path.suffix!r} is not read; give one of {', '.join(SUFFIXES)}")


def _read_json(text: str, path: Path) -> Iterator[Any]:
    if path.suffix == ".jsonl":
        for number, line in enumerate(text.splitlines()):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise DataError(f"{path}, line {number + 1}: is not JSON: {error}") from error
        return
    try:
        content = json.loads(text)
    except ValueError as error:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) > 1 and all(line.lstrip().startswith("{") for line in lines):
            # JSON lines under the name .json, as some repositories have them.
            yield from _read_json(text, path.with_suffix(".jsonl"))
            return
        raise DataError(f"{path}: is not JSON: {error}") from error
    yield from content if isinstance(content, list) else [content]


def _read_csv(text: str, path: Path) -> Iterator[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    for number, row in enumerate(reader):
        # More values than columns stand under None; fewer leave None.
        if None in row or None in row.values():
            raise RecordError(f"{path}, record {number}: line {reader.line_num}: has not one value a column; mend it")
        yield row


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            offset = 0
            for batch in file.iter_batches(_BATCH):
                yield from decode_batch(batch, str(path), offset)
                offset += batch.num_rows
    except pa.ArrowException as error:
        raise DataError(f"{path}: cannot read the file as Parquet: {error}") from error


def _read_saved(path: Path) -> Iterator[dict[str, Any]]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except (ValueError, FileNotFoundError) as error:
        raise DataError(f"{path}: cannot read the folder that datasets saved: {error}") from error
    splits = loaded if isinstance(loaded, Mapping) else {"": loaded}
    if len(splits) > 1:
        raise DataError(f"{path}: holds the splits {', '.join(splits)}; set --source to the folder of one of them")
    for split in splits.values():
        table = split.with_format("arrow")
        for first in range(0, len(split), _BATCH):
            yield from decode_batch(table[first : first + _BATCH], str(path), first)


def check_text(value: Any, where: str, field: str = "record") -> None:
    """Checks that every text in a record is valid UTF-8.

    Raises:
        RecordError: names the field.
    """
    if isinstance(value, str):
        # ASCII is most of it, and told apart at once.
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise RecordError.at(where, field, "is not valid UTF-8", "write it as UTF-8")
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            check_text(key, where, field)
            check_text(entry, where, str(key) if field == "record" else f"{field}.{key}")
    elif isinstance(value, list):
        for number, entry in enumerate(value):
            check_text(entry, where, f"{field}[{number}]")


def hash_source(path: Path) -> str:
    """SHA-256 of a file, or of a folder's files with their names."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for entry in sorted(path.rglob("*")):
        if entry.is_file():
            digest.update(f"{entry.relative_to(path)}\0{hash_source(entry)}\n".encode())
    return digest.hexdigest()
