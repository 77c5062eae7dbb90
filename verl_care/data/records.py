"""The one schema of training records, how a record is built, and how records are checked before training starts.

A record is a row as verl reads it, with ``data_source``, ``prompt``, ``videos``, ``images``, ``reward_model`` and
``extra_info``. Text, image and video records may stand in one file, in any order. Imports neither torch nor verl.
"""

from __future__ import annotations

import json
import math
import numbers
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from verl_care.rewards.multiple_choice import split_option
from verl_care.rewards.numerical import read_number
from verl_care.rewards.parsing import is_utf8, read_ground_truth
from verl_care.rewards.scorer import GROUNDED_QA, GROUNDING, PROBLEM_TYPES, read_gold

MIN_VIDEO_PIXELS = 128 * 28 * 28
"""Pixels to which qwen-vl-utils enlarges a smaller frame unless ``min_pixels`` is given (with patches of 14 pixels)."""

_MEDIA = {"video": "videos", "image": "images", "audio": "audios"}
_PLACEHOLDER = re.compile("<(video|image|audio)>")
_COLUMNS = ("data_source", "prompt", *_MEDIA.values(), "reward_model", "extra_info")
_CHECKED_AT_ONCE = 1024


class DataError(ValueError):
    """Data that cannot be trained on; the message is one line and names the file and what to do."""


class MissingDataError(DataError):
    """A data file that is not there; the message names the command that makes it."""


class RecordError(DataError):
    """A faulty record; the message names file, record, field and remedy."""

    @classmethod
    def at(cls, where: str, field: str, problem: str, remedy: str) -> RecordError:
        """The error of one field: ``where`` names file and record."""
        return cls(f"{where}: {field}: {problem}; {remedy}")


class Message(TypedDict):
    """One turn of a prompt; ``<video>`` and ``<image>`` stand where media go, in the order of the media columns."""

    role: str
    content: str


class Video(TypedDict):
    """A video and how qwen-vl-utils samples it; other keys are passed on, None counts as not given."""

    video: str | list[str]
    nframes: NotRequired[int]
    fps: NotRequired[float]
    min_frames: NotRequired[int]
    max_frames: NotRequired[int]
    min_pixels: NotRequired[int]
    max_pixels: NotRequired[int]
    total_pixels: NotRequired[int]
    video_start: NotRequired[float]
    video_end: NotRequired[float]


class Image(TypedDict):
    """An image and its size limits; other keys are passed on, None counts as not given."""

    image: str
    min_pixels: NotRequired[int]
    max_pixels: NotRequired[int]


class RewardModel(TypedDict):
    """How the record is scored."""

    style: str
    ground_truth: str


class ExtraInfo(TypedDict):
    """What the scorer and the logs need of a record; other keys are passed on."""

    index: int
    problem_type: str
    options: NotRequired[list[str]]
    duration: NotRequired[float]
    span_unit: NotRequired[str]
    answer_unit: NotRequired[str]


class Row(TypedDict):
    """One row of a data file."""

    data_source: str
    prompt: list[Message]
    videos: list[Video]
    images: list[Image]
    reward_model: RewardModel
    extra_info: ExtraInfo


@dataclass(frozen=True, slots=True)
class Record:
    """What a check found in a row."""

    data_source: str
    index: int
    problem_type: str
    ground_truth: str
    """Expected answer without tags."""
    options: tuple[str, ...]
    files: tuple[str, ...]
    """Local media files that the record needs."""

    @property
    def prompt_key(self) -> str:
        """Name of the record that stays the same over epochs, runs and resumes."""
        return f"{self.data_source}/{self.index}"


def strip_none(value: Mapping[str, Any]) -> dict[str, Any]:
    """A media dict without its None entries: Parquet gives every row of a column all keys that any row has."""
    return {key: entry for key, entry in value.items() if entry is not None}


def _text(value: object, where: str, field: str, remedy: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise RecordError.at(where, field, f"expected text; got {_short(value)}", remedy)
    if not is_utf8(value):
        raise RecordError.at(where, field, f"{_short(value)} is not valid UTF-8", "write it as UTF-8")
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _sequence(value: object, where: str, field: str) -> Sequence[Any]:
    if value is None:
        return ()
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        raise RecordError.at(where, field, f"expected a list; got {_short(value)}", "put the entries into a list")
    return value


def _number(media: Mapping[str, Any], key: str, minimum: float, where: str, field: str) -> float | None:
    value = media.get(key)
    if value is None:
        return None
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not math.isfinite(value) or value < minimum:
        raise RecordError.at(where, f"{field}.{key}", f"expected a number >= {minimum:g}; got {value!r}", "mend it")
    return float(value)


def _ordered(media: Mapping[str, Any], low: str, high: str, where: str, field: str, minimum: float = 1) -> None:
    a, b = (_number(media, key, minimum, where, field) for key in (low, high))
    if a is not None and b is not None and a > b:
        raise RecordError.at(where, field, f"{low} {a:g} is above {high} {b:g}", "swap or drop one")


def _local(path: str) -> list[str]:
    """The path as a list of local files: empty for a URL or inline data."""
    path = path.removeprefix("file://")
    return [] if "://" in path[:16] or path.startswith("data:") else [path]


def _check_video(video: Any, where: str, field: str) -> list[str]:
    media = strip_none(video) if isinstance(video, Mapping) else {"video": video}
    source = media.get("video")
    frames = [source] if isinstance(source, str) else source
    if not isinstance(frames, list | tuple) or not frames or not all(frames):
        raise RecordError.at(
            where, field, f"expected a path, or a dict with video; got {_short(video)}", "set video to the clip's path"
        )
    if "fps" in media and "nframes" in media:
        raise RecordError.at(where, field, "has both fps and nframes", "keep one of them")
    _number(media, "nframes", 2, where, field)
    _ordered(media, "min_frames", "max_frames", where, field)
    _ordered(media, "min_pixels", "max_pixels", where, field)
    _ordered(media, "video_start", "video_end", where, field, minimum=0)
    fps = _number(media, "fps", 0, where, field)
    if fps == 0:
        raise RecordError.at(where, f"{field}.fps", "expected a number > 0; got 0", "mend it")
    if "min_pixels" not in media and media.get("max_pixels", MIN_VIDEO_PIXELS) < MIN_VIDEO_PIXELS:
        raise RecordError.at(
            where,
            f"{field}.max_pixels",
            f"{media['max_pixels']} is below the {MIN_VIDEO_PIXELS} pixels that qwen-vl-utils enlarges a frame to",
            "set min_pixels too",
        )
    return [file for frame in frames if isinstance(frame, str) for file in _local(frame)]


def _check_image(image: Any, where: str, field: str) -> list[str]:
    source: Any = image
    if isinstance(image, Mapping):
        media = strip_none(image)
        _ordered(media, "min_pixels", "max_pixels", where, field)
        source = next((media[key] for key in ("bytes", "image", "image_url") if media.get(key)), None)
    if source is None or (isinstance(source, str) and not source):
        raise RecordError.at(
            where, field, f"expected a path, or a dict with image; got {_short(image)}", "set image to the file's path"
        )
    return _local(source) if isinstance(source, str) else []


def _check_prompt(prompt: object, where: str) -> dict[str, int]:
    """Checks the turns and counts their placeholders by kind of media."""
    messages = _sequence(prompt, where, "prompt")
    if not messages or not all(isinstance(message, Mapping) for message in messages):
        raise RecordError.at(
            where, "prompt", f"expected a list of messages; got {_short(prompt)}", "write [{role: user, content: …}]"
        )
    counts = dict.fromkeys(_MEDIA, 0)
    for number, message in enumerate(messages):
        _text(message.get("role"), where, f"prompt[{number}].role", "set user, system or assistant")
        content = _text(message.get("content"), where, f"prompt[{number}].content", "write the turn as one string")
        if "<" in content:
            for kind in _PLACEHOLDER.findall(content):
                counts[kind] += 1
    if messages[-1]["role"] != "user":
        raise RecordError.at(where, "prompt", f"ends with role {messages[-1]['role']!r}", "end it with the user's turn")
    return counts


def _check_answer(
    answer: str, problem_type: str, options: Sequence[str], extra_info: Mapping[str, Any], where: str
) -> None:
    field = "reward_model.ground_truth"
    if problem_type in (GROUNDING, GROUNDED_QA):
        try:
            answer, _ = read_gold(answer, problem_type, extra_info)
        except ValueError as error:
            # Faults of unit and duration name their own field.
            message = str(error)
            named = message if message.startswith("extra_info.") else f"{field}: {message}"
            raise RecordError(f"{where}: {named}") from None
        if problem_type == GROUNDED_QA:
            _check_answer(answer, "multiple choice", options, extra_info, where)
        return
    if problem_type == "multiple choice":
        labels = [pair[0] for pair in map(split_option, options) if pair]
        if options and answer not in labels:
            problem = f"{answer!r} is not among the options {', '.join(labels)}"
            raise RecordError.at(where, field, problem, "set the right option's letter")
        if not options and not (len(answer) == 1 and answer.isascii() and answer.isupper()):
            raise RecordError.at(where, field, f"{answer!r} is not an option's letter", "set one capital letter")
    elif problem_type in ("numerical", "regression") and read_number(answer) is None:
        raise RecordError.at(
            where, field, f"{answer!r} is not a number, so no answer can score", "set a number as text"
        )


def check_record(row: Mapping[str, Any], where: str = "record") -> Record:
    """Checks a row: what training, rollout and reward will need of it is there and fits together.

    Args:
        row: row as a data file gives it; None counts as not given, unknown keys are let through.
        where: name of file and record for messages.

    Returns:
        What the record is; the row itself is not changed.

    Raises:
        RecordError: a field that is missing or wrong; the message names ``where``, the field and the remedy.
    """
    if not isinstance(row, Mapping):
        raise RecordError.at(where, "record", f"expected a dict; got {_short(row)}", "write one object a record")
    data_source = _text(row.get("data_source"), where, "data_source", "name the data set")

    extra_info = row.get("extra_info")
    extra_info = extra_info if isinstance(extra_info, Mapping) else {}
    index = extra_info.get("index")
    if not isinstance(index, numbers.Integral) or isinstance(index, bool) or index < 0:
        raise RecordError.at(
            where, "extra_info.index", f"expected a number of the record; got {index!r}", "number the records from 0"
        )
    problem_type = extra_info.get("problem_type")
    if not isinstance(problem_type, str) or problem_type not in PROBLEM_TYPES:
        raise RecordError.at(
            where, "extra_info.problem_type", f"got {problem_type!r}", f"set one of {', '.join(PROBLEM_TYPES)}"
        )
    options = tuple(_sequence(extra_info.get("options"), where, "extra_info.options"))
    labels = [split_option(option) if isinstance(option, str) else None for option in options]
    letters = {label[0] for label in labels if label}
    if len(letters) < len(options):
        raise RecordError.at(
            where, "extra_info.options", f"expected a letter of its own each; got {_short(options)}", "write A. …, B. …"
        )

    reward_model = row.get("reward_model")
    ground_truth = _text(
        reward_model.get("ground_truth") if isinstance(reward_model, Mapping) else None,
        where,
        "reward_model.ground_truth",
        "set the expected answer as text",
    )
    answer = read_ground_truth(ground_truth)
    if not answer:
        raise RecordError.at(where, "reward_model.ground_truth", "the answer tags are empty", "set the expected answer")
    _check_answer(answer, problem_type, options, extra_info, where)

    files: list[str] = []
    placeholders = _check_prompt(row.get("prompt"), where)
    for kind, column in _MEDIA.items():
        media = _sequence(row.get(column), where, column)
        if len(media) != placeholders[kind]:
            raise RecordError.at(
                where,
                column,
                f"{len(media)} given, but the prompt has {placeholders[kind]} <{kind}>",
                f"put one <{kind}> into the prompt for each",
            )
        if kind != "audio":
            check = _check_video if kind == "video" else _check_image
            for number, entry in enumerate(media):
                files += check(entry, where, f"{column}[{number}]")
    return Record(
        data_source=data_source,
        index=int(index),
        problem_type=problem_type,
        ground_truth=answer,
        options=options,
        files=tuple(files),
    )


def to_row(
    *,
    data_source: str,
    index: int,
    question: str,
    problem_type: str,
    ground_truth: str,
    options: Sequence[str] = (),
    videos: Sequence[str | Mapping[str, Any]] = (),
    images: Sequence[str | Mapping[str, Any]] = (),
    system: str | None = None,
    extra_info: Mapping[str, Any] | None = None,
    where: str | None = None,
) -> Row:
    """Builds a record and checks it.

    Args:
        data_source: name of the data set.
        index: number of the record in the data set; with ``data_source`` its name for good.
        question: text of the user's turn; without any placeholder in it, those of videos and images go in front.
        problem_type: one of ``PROBLEM_TYPES``.
        ground_truth: expected answer, with or without answer tags (dropped).
        options: of a multiple-choice question, ``A. …`` each.
        videos: paths or video dicts, in the order of their placeholders.
        images: paths or image dicts, in the order of their placeholders.
        system: system turn, if any.
        extra_info: more keys for ``extra_info``.
        where: name of file and record for messages; data source and index if not given.

    Raises:
        RecordError: a record that would not train.
    """
    video_dicts = [strip_none(video) if isinstance(video, Mapping) else {"video": str(video)} for video in videos]
    image_dicts = [strip_none(image) if isinstance(image, Mapping) else {"image": str(image)} for image in images]
    if not _PLACEHOLDER.search(question):
        question = "<video>" * len(video_dicts) + "<image>" * len(image_dicts) + question
    prompt: list[Message] = [{"role": "system", "content": system}] if system else []
    prompt.append({"role": "user", "content": question})
    info = {**(extra_info or {}), "index": index, "problem_type": problem_type}
    if options:
        info["options"] = list(options)
    row: Row = {
        "data_source": data_source,
        "prompt": prompt,
        "videos": video_dicts,  # type: ignore[typeddict-item]
        "images": image_dicts,  # type: ignore[typeddict-item]
        "reward_model": {"style": "rule", "ground_truth": read_ground_truth(ground_truth)},
        "extra_info": info,  # type: ignore[typeddict-item]
    }
    check_record(row, where or f"{data_source}, record {index}")
    return row


def _struct(known: Mapping[str, Any], dicts: Iterable[Mapping[str, Any]], more: Iterable[str]) -> Any:
    import pyarrow as pa

    dicts = list(dicts)
    inferred = {key: pa.infer_type([entry.get(key) for entry in dicts]) for key in more if key not in known}
    return pa.struct({**known, **inferred})


def _schema(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Arrow schema that is the same for text, image and video records, so that files of any kinds can be joined."""
    import pyarrow as pa

    def keys(dicts: Iterable[Mapping[str, Any]]) -> list[str]:
        return sorted({key for entry in dicts for key in entry})

    integer, real, text = pa.int64(), pa.float64(), pa.string()
    sizes = {name: integer for name in ("min_pixels", "max_pixels", "resized_height", "resized_width")}
    counts = {name: integer for name in ("nframes", "min_frames", "max_frames", "total_pixels")}
    seconds = {name: real for name in ("fps", "video_start", "video_end")}
    videos = [video for row in rows for video in row.get("videos") or ()]
    images = [image for row in rows for image in row.get("images") or ()]
    infos = [row["extra_info"] for row in rows]
    info = {"index": integer, "problem_type": text, "options": pa.list_(text)}
    if any("duration" in entry for entry in infos):
        # Whole seconds in some records and fractions in others are one column.
        info["duration"] = real
    return pa.schema(
        {
            "data_source": text,
            "prompt": pa.list_(pa.struct({"role": text, "content": text})),
            "videos": pa.list_(_struct({"video": text, **counts, **seconds, **sizes}, videos, keys(videos))),
            "images": pa.list_(_struct({"image": text, **sizes}, images, keys(images))),
            "reward_model": pa.struct({"style": text, "ground_truth": text}),
            "extra_info": _struct(info, infos, keys(infos)),
        }
    )


def write_rows(rows: Iterable[Mapping[str, Any]], path: str | Path) -> int:
    """Checks records and writes them as Parquet; a file that is there is replaced as a whole or not at all.

    Args:
        rows: records as ``to_row`` builds them.
        path: file to write; its folder is made.

    Returns:
        Number of records.

    Raises:
        RecordError: a faulty record, or two different ones with the same data source and index.
        DataError: no records, or values that have no common type.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    rows = list(rows)
    check_rows(rows, str(path), {})
    if not rows:
        raise DataError(f"{path}: no records to write")
    try:
        table = pa.Table.from_pylist(rows, schema=_schema(rows))
    except (pa.ArrowException, AttributeError) as error:
        raise DataError(f"{path}: the records do not fit into one table: {error}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as unfinished:
        pq.write_table(table, unfinished)
    return len(rows)


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Gives a name beside ``path`` to write to; what was written takes the file's place, unless the block raises."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Gives a new folder beside ``path``; what is in it takes that one's place, unless the block raises."""
    unfinished = path.with_name(f".{path.name}.partial{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        shutil.rmtree(path, ignore_errors=True)
        unfinished.replace(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def remote_media(row: Mapping[str, Any]) -> list[str]:
    """Addresses among a record's media: what would be fetched from elsewhere when the record is used."""
    found = []
    for column in ("videos", "images"):
        for entry in row.get(column) or ():
            media = strip_none(entry) if isinstance(entry, Mapping) else {"video": entry}
            sources = [media[key] for key in ("video", "image", "image_url") if key in media]
            for source in sources:
                frames = source if isinstance(source, list | tuple) else [source]
                found += [
                    frame
                    for frame in frames
                    if isinstance(frame, str) and not _local(frame) and not frame.startswith("data:")
                ]
    return found


def check_rows(
    rows: Iterable[Mapping[str, Any]], file: str, seen: dict[str, tuple[int, str]], check_media: bool = False
) -> int:
    """Checks the records of one file.

    Args:
        rows: the file's records in order.
        file: name for messages.
        seen: keys of the records met so far, with their content's hash and place; filled, and handed on from file to
            file. The same record may come again, another one under the same key may not.
        check_media: also checks that all media are files on this machine, and are there.

    Returns:
        Number of records.

    Raises:
        RecordError: the first faulty record.
    """
    count = 0
    present: set[str] = set()
    for number, row in enumerate(rows):
        where = f"{file}, record {number}"
        record = check_record(row, where)
        content = hash((record.ground_truth, record.files, str(row["prompt"])))
        # A split of its own may count its records anew.
        key = f"{record.prompt_key}/{(row.get('extra_info') or {}).get('split')}"
        first_content, first_where = seen.setdefault(key, (content, where))
        if first_content != content:
            raise RecordError.at(
                where,
                "extra_info.index",
                f"{record.index} of {record.data_source} names another record already ({first_where})",
                "give each record of a data source an index of its own",
            )
        if check_media:
            check_media_files(row, record, where, present)
        count += 1
    return count


def check_media_files(row: Mapping[str, Any], record: Record, where: str, present: set[str]) -> None:
    """Checks that all media of a record are files on this machine, and are there.

    Args:
        row: row as a data file gives it.
        record: what ``check_record`` made of it.
        where: name of file and record for messages.
        present: files that are known to be there; filled.

    Raises:
        RecordError: the first that is not.
    """
    for media in remote_media(row):
        raise RecordError.at(
            where, "media", f"{media} is not on this machine", "fetch it, or set data.care.check_media=false"
        )
    for media in record.files:
        if media not in present and not os.path.exists(media):
            raise RecordError.at(where, "media", f"no such file: {media}", "fetch it or drop the record")
        present.add(media)


def decode_batch(batch: Any, file: str, offset: int) -> list[dict[str, Any]]:
    """Rows of an Arrow batch or table as dicts.

    Args:
        batch: the batch.
        file: name for messages.
        offset: number of the batch's first record in the file.

    Raises:
        RecordError: text that is not UTF-8; names record and column.
    """
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        for number in range(batch.num_rows):
            for name in batch.schema.names:
                try:
                    batch.column(name)[number].as_py()
                except UnicodeDecodeError as error:
                    where = f"{file}, record {offset + number}"
                    raise RecordError.at(where, name, f"is not valid UTF-8: {error}", "write it as UTF-8") from error
        raise


def parquet_rows(path: str, columns: Sequence[str] = _COLUMNS) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file, some of them in memory at a time.

    Args:
        path: local file.
        columns: those to read, as far as the file has them.

    Raises:
        RecordError: text that is not UTF-8; names record and column.
        DataError: a file that cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    offset = 0
    try:
        with pq.ParquetFile(path) as file:
            names = set(file.schema_arrow.names)
            present = [name for name in columns if name in names]
            for batch in file.iter_batches(_CHECKED_AT_ONCE, columns=present):
                yield from decode_batch(batch, path, offset)
                offset += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot read the file as Parquet: {error}") from error


def _json_rows(path: str) -> Iterator[dict[str, Any]]:
    try:
        with open(path, encoding="utf-8") as file:
            if file.read(1) == "[":
                file.seek(0)
                yield from json.load(file)
                return
            file.seek(0)
            yield from (json.loads(line) for line in file if line.strip())
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot read the file as JSON: {error}") from error


def check_file(path: str, seen: dict[str, tuple[int, str]] | None = None, check_media: bool = False) -> int:
    """Checks every record of a data file.

    Args:
        path: local ``.parquet``, ``.json`` or ``.jsonl`` file.
        seen: keys of the records in files checked before, see ``check_rows``.
        check_media: also checks that all media are files on this machine, and are there.

    Returns:
        Number of records.

    Raises:
        RecordError: the first faulty record.
        DataError: a file that cannot be read, or has no records.
    """
    rows = parquet_rows(path) if path.endswith(".parquet") else _json_rows(path)
    count = check_rows(rows, path, {} if seen is None else seen, check_media)
    if not count:
        raise DataError(f"{path}: no records in the file")
    return count


def make_command_of(path: str, configured: str | None = None) -> str | None:
    """The command that makes a file: the configured one, the demo's for a path in its default folder, or None."""
    if configured:
        return configured
    return "verl-care demo --assets-only" if "verl_care/demo" in Path(path).as_posix() else None


def missing_file(path: str, configured: str | None = None) -> MissingDataError:
    """The error of a data file that is not there.

    Args:
        path: the file.
        configured: command that makes it (``data.care.make_command``), if the config names one.
    """
    command = make_command_of(path, configured)
    remedy = (
        f"make it with: {command}"
        if command
        else "make a published set with: verl-care prepare NAME, or set data.train_files and data.val_files to yours"
    )
    return MissingDataError(f"{path}: no such data file; {remedy}")
