"""Prepares one data set: reads, checks, looks at the clips, compares with evaluation sets, splits, writes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from verl_care import __version__
from verl_care.data.leakage import Overlap, find_overlap, known_overlaps, read_traces, trace_row
from verl_care.data.prepare import video_r1
from verl_care.data.prepare.base import Fields, Preparer, find_media
from verl_care.data.prepare.dev_split import MAX_DEV_RECORDS, MAX_DEV_SHARE, split_dev
from verl_care.data.prepare.frames import make_clip
from verl_care.data.prepare.readers import check_text, find_files, hash_source, is_saved_dataset, read_file
from verl_care.data.prepare.rows import Entry, build_row, write_part
from verl_care.data.probe import Cache, Clip, Limits, probe_all
from verl_care.data.prompts import STYLES
from verl_care.data.records import DataError, RecordError, replace_file

MANIFEST, PROBES = "manifest.json", "probes.jsonl"
ERRORS, QUARANTINE = "{split}.errors.jsonl", "{split}.quarantine.jsonl"


class Refused(DataError):
    """What was found does not let the data set be written; the message says what would."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for."""

    source: Path
    videos: Path
    out: Path
    options: Mapping[str, str] = field(default_factory=dict)
    """``--set`` of the preparer."""
    prompt: str | None = None
    """One of ``prompts.STYLES``; None takes the data set's own."""
    dev: int | None = None
    """Records of the development split; None takes ``dev_fraction``."""
    dev_fraction: float | None = None
    """Share of the records, in [0, 1); None takes the default size."""
    seed: int = 0
    """Of the development split."""
    quarantine: bool = False
    """Leave out what is faulty, and list it, in place of refusing."""
    max_errors: int = 0
    """Faulty records to collect before giving up."""
    strict: bool = False
    """Refuse a training set that overlaps an evaluation set."""
    against: Sequence[Path] = ()
    """Prepared files or folders to compare with, besides those beside ``out``."""
    ignore_columns: Sequence[str] = ()
    probe: bool = True
    """Look at the clips."""
    limits: Limits = field(default_factory=Limits)
    workers: int | None = None
    probe_cache: Path | None = None


class Errors:
    """Faulty records; more than ``limit`` of them end the run.

    Args:
        limit: how many are collected.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.lines: list[str] = []

    def add(self, error: RecordError) -> None:
        """Collects one.

        Raises:
            RecordError: the same, if nothing is collected.
            Refused: one more than is collected.
        """
        if not self.limit:
            raise error
        self.lines.append(str(error))
        if len(self.lines) > self.limit:
            raise Refused(f"{error} (more than {self.limit} faulty records; see --max-errors)")


def prepare(
    preparer: Preparer,
    request: Request,
    tell: Callable[[str], None] = lambda line: None,
    on_probe: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Prepares a data set; what is there already is replaced file by file, and only once everything was checked.

    Args:
        preparer: how the data set is read.
        request: what was asked for.
        tell: gets the lines that a user should see.
        on_probe: told how many clips of how many were looked at.

    Returns:
        The manifest, as it was written; its ``splits`` are those of this run and of earlier ones into the same folder.

    Raises:
        DataError: what cannot be read, or is faulty, or is refused; one line.
    """
    options: dict[str, Any] = preparer.read_options(request.options)
    if request.prompt not in (None, *STYLES):
        raise DataError(f"--prompt: expected {', '.join(STYLES)}; got {request.prompt!r}")
    if not request.videos.is_dir():
        raise DataError(f"{request.videos}: no such folder; set --videos to the folder of the clips")
    if options.get("subtitles"):
        options["subtitles"] = str(Path(options["subtitles"]).expanduser())
    splits = _find_splits(preparer, request.source, options.get("split", preparer.split))
    # All of them are checked before the first is written.
    checked = [
        _check_split(preparer, sources, request, {**options, "split": split}, tell, on_probe)
        for split, sources in splits.items()
    ]
    _compare(preparer.name, checked, request, tell)
    written = _earlier_splits(request.out, preparer.name)
    for rows, entry in checked:
        parts = _divide(preparer.name, rows, entry["options"]["split"], request, tell)
        entry["counts"].update({part: len(part_rows) for part, part_rows in parts.items()})
        entry["files"] = {
            f"{part}.parquet": write_part(preparer, part_rows, request.out / f"{part}.parquet")
            for part, part_rows in parts.items()
        }
        written[entry["options"]["split"]] = entry
    manifest = {"name": preparer.name, "version": __version__, "splits": written}
    with replace_file(request.out / MANIFEST) as unfinished:
        unfinished.write_text(json.dumps(manifest, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    return manifest


def _find_splits(preparer: Preparer, source: Path, split: str) -> dict[str, list[Path]]:
    """Split -> its files; for ``all`` the training and the test split, as far as they are there."""
    found: dict[str, list[Path]] = {}
    for wanted in ("train", "test") if split == "all" else (split,):
        try:
            found[wanted] = find_files(source, tuple(pattern.format(split=wanted) for pattern in preparer.files))
        except DataError:
            if wanted == split:
                raise
    if split == "all" and (source.is_file() or is_saved_dataset(source)):
        named = [wanted for wanted in ("train", "test") if wanted in source.name.lower()]
        if len(named) != 1:
            raise DataError(f"{source}: is it the training or the test split? say so with --set split=…")
        return {named[0]: [source]}
    if not found:
        names = ", ".join(pattern.format(split="{train,test}") for pattern in preparer.files)
        raise DataError(f"{source}: none of {names} in the folder; set --source to the file itself")
    return found


def _earlier_splits(out: Path, name: str) -> dict[str, Any]:
    """Splits that the manifest in the folder has."""
    path = out / MANIFEST
    if not path.exists():
        return {}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["name"] == name:
            return dict(manifest["splits"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is no manifest: {error!r}; set --out to another folder") from None
    raise DataError(f"{path}: the folder holds {manifest['name']}; set --out to another one")


def _check_split(
    preparer: Preparer,
    sources: Sequence[Path],
    request: Request,
    options: dict[str, Any],
    tell: Callable[[str], None],
    on_probe: Callable[[int, int], None],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of a split that may be written, and its entry of the manifest."""
    split = options["split"]
    for known in known_overlaps():
        if split == "train" and known["train"] == preparer.name:
            tell(f"known: {preparer.name} and {known['evaluation']}: {known['what']} ({known['source']})")
    errors = Errors(request.max_errors)
    folders = {"videos": request.videos.absolute(), "source": request.source.absolute()}
    entries, published, skipped = _read(preparer, sources, request, {**options, **folders}, errors)
    if not entries and not errors.lines:
        raise DataError(f"{sources[0]}: no records in the file that these options keep")
    clips = _look_at_clips(entries, request, errors, on_probe)
    faulty = _judge(entries, clips, request.limits)
    rows = _build_rows(preparer, entries, faulty, request.prompt, options, errors)
    counts = Counter(cause for cause, _ in faulty.values())
    _list_faults(request.out, split, entries, faulty, errors, tell)
    if (errors.lines or faulty) and not request.quarantine:
        raise Refused(
            f"{preparer.name}: {len(errors.lines)} faulty records and {len(faulty)} with clips that cannot be used, "
            f"listed in {request.out}; mend them, or leave them out with --quarantine"
        )
    if not rows:
        raise DataError(f"{preparer.name}: nothing is left of {published} records")
    return rows, {
        "sources": [{"path": str(path), "sha256": hash_source(path)} for path in sources],
        "options": {
            **options,
            "prompt": request.prompt or preparer.prompt,
            "seed": request.seed,
            "quarantine": request.quarantine,
            "ignore_columns": list(request.ignore_columns),
            "probe": request.probe,
            **{key: value for key, value in asdict(request.limits).items() if 0 < value < float("inf")},
        },
        "counts": {
            "published": published,
            "left out by options": skipped,
            "faulty": len(errors.lines),
            "quarantined": dict(sorted(counts.items())),
        },
    }


def _divide(
    name: str, rows: list[dict[str, Any]], split: str, request: Request, tell: Callable[[str], None]
) -> dict[str, list[dict[str, Any]]]:
    """Name of each file to write -> its rows."""
    if split != "train":
        return {"val" if split == "val" else "test": rows}
    size = _dev_size(request, len(rows))
    kept, held = split_dev(rows, size, request.seed)
    if not held and size and (request.dev or request.dev_fraction):
        raise DataError(f"--dev: every clip has more than {size} records; ask for more")
    for row in held:
        row["extra_info"]["split"] = "dev"
    if held:
        return {"train": kept, "dev": held}
    tell(f"{name}: no development split; ask for one with --dev N")
    (request.out / "dev.parquet").unlink(missing_ok=True)
    return {"train": kept}


def _read(
    preparer: Preparer, sources: Sequence[Path], request: Request, options: Mapping[str, Any], errors: Errors
) -> tuple[list[Entry], int, int]:
    """Entries in the published order, the number of published records, and of those that the options leave out."""
    entries: list[Entry] = []
    seen: dict[str, str] = {}
    index = skipped = 0
    known = None if preparer.columns is None else preparer.columns | set(request.ignore_columns)
    for path in sources:
        if path.is_dir() and not is_saved_dataset(path):
            raise DataError(f"{path}: is a folder; set --source to the file")
        read, convert = preparer.read, preparer.convert
        if preparer.kind == "evaluation" and video_r1.is_evaluation_file(path):
            read, convert, known = None, video_r1.convert, video_r1.COLUMNS | set(request.ignore_columns)
        for where, record in read(path, options) if read else read_file(path):
            try:
                check_text(record, where)
                item = convert(Fields(record, where, known), options)
                if item is None:
                    skipped += 1
                    continue
                first = seen.setdefault(item.id, where) if item.id else where
                if first != where:
                    raise RecordError.at(where, "id", f"{item.id!r} is there already ({first})", "drop one")
                entries.append(Entry(index=index, where=where, item=item))
            except RecordError as error:
                errors.add(error)
            finally:
                index += 1
    return entries, index, skipped


def _look_at_clips(
    entries: list[Entry], request: Request, errors: Errors, on_probe: Callable[[int, int], None]
) -> dict[str, Clip]:
    root = request.videos.absolute()
    sound = []
    for entry in entries:
        try:
            entry.media = _media_of(entry, root, request.out)
            sound.append(entry)
        except RecordError as error:
            errors.add(error)
    entries[:] = sound
    if not request.probe:
        return {}
    cache = Cache(request.probe_cache or request.out / PROBES)
    return probe_all((entry.media for entry in entries if entry.media), cache, request.workers, on_probe)


def _media_of(entry: Entry, root: Path, out: Path) -> str | None:
    item = entry.item
    if item.image is not None:
        return str(find_media(root, item.image, entry.where, "path"))
    if item.video is None:
        return None
    names = [item.video] if isinstance(item.video, str) else list(item.video)
    paths = [find_media(root, name, entry.where, "video") for name in names]
    path = next((path for path in paths if path.exists()), paths[0])
    if not path.is_dir():
        return str(path)
    clip = out.absolute() / "clips" / path.relative_to(root).parent / f"{path.name}.mp4"
    try:
        return str(make_clip(path, clip))
    except DataError as error:
        raise RecordError.at(entry.where, "video", str(error), "mend or drop it") from None


def _judge(entries: Iterable[Entry], clips: Mapping[str, Clip], limits: Limits) -> dict[int, tuple[str, str]]:
    """Index of each record whose clip cannot be used -> cause and detail."""
    faulty: dict[int, tuple[str, str]] = {}
    for entry in entries:
        entry.clip = clips.get(entry.media or "")
        verdicts = [limits.judge(entry.clip, *part) for part in entry.item.ranges] if entry.clip else []
        for verdict in filter(None, verdicts):
            faulty.setdefault(entry.index, verdict)
    return faulty


def _build_rows(
    preparer: Preparer,
    entries: Iterable[Entry],
    faulty: Mapping[int, tuple[str, str]],
    style: str | None,
    options: Mapping[str, Any],
    errors: Errors,
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for entry in entries:
        if entry.index not in faulty:
            try:
                rows.append(build_row(preparer, entry, style, options))
            except RecordError as error:
                errors.add(error)
    return rows


def _list_faults(
    out: Path,
    split: str,
    entries: Iterable[Entry],
    faulty: Mapping[int, tuple[str, str]],
    errors: Errors,
    tell: Callable[[str], None],
) -> None:
    """Writes what was found faulty, or takes away the lists of an earlier run."""
    out.mkdir(parents=True, exist_ok=True)
    listed = [
        {
            "id": entry.item.id or str(entry.index),
            "index": entry.index,
            "cause": faulty[entry.index][0],
            "detail": faulty[entry.index][1],
            "file": entry.media,
            "record": entry.where,
        }
        for entry in entries
        if entry.index in faulty
    ]
    lists: dict[str, list[dict[str, Any]]] = {QUARANTINE: listed, ERRORS: [{"error": line} for line in errors.lines]}
    for name, lines in ((name.format(split=split), lines) for name, lines in lists.items()):
        if not lines:
            (out / name).unlink(missing_ok=True)
            continue
        with replace_file(out / name) as unfinished:
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            unfinished.write_text(text, encoding="utf-8")
    for line in errors.lines:
        tell(line)
    for cause, count in sorted(Counter(cause for cause, _ in faulty.values()).items()):
        tell(f"{count} records: {cause}")


def _compare(
    name: str,
    checked: Sequence[tuple[list[dict[str, Any]], dict[str, Any]]],
    request: Request,
    tell: Callable[[str], None],
) -> None:
    """Tells, and puts into the manifest, what a training set shares with an evaluation set, of this run or prepared."""
    traces = {entry["options"]["split"]: [trace for trace in map(trace_row, rows) if trace] for rows, entry in checked}
    refused = 0
    for _, entry in checked:
        split = entry["options"]["split"]
        train = split == "train"
        wanted = "test.parquet" if train else "train.parquet"
        files = [path / wanted if path.is_dir() else path for path in request.against]
        files += sorted(request.out.absolute().parent.glob(f"*/{wanted}"))
        others = [
            path
            for path in dict.fromkeys(file.absolute() for file in files)
            # What this run is about to replace.
            if not (path.parent == request.out.absolute() and wanted.split(".")[0] in traces)
        ]
        if train and not others and "test" not in traces:
            if request.strict:
                raise Refused(f"{name}: --strict needs test sets to compare with; prepare them, or use --against")
            tell(f"{name}: no test set beside {request.out}; overlaps were not looked for")
        found: list[Overlap | None] = []
        for path in others:
            if not path.exists():
                raise DataError(f"{path}: no such file; set --against to prepared files or their folders")
            other_name = path.parent.name if path.name == wanted else str(path)
            pair = (traces[split], read_traces(path)) if train else (read_traces(path), traces[split])
            found.append(find_overlap(*pair, *((name, other_name) if train else (other_name, name))))
        if train and "test" in traces:
            found.append(find_overlap(traces[split], traces["test"], name, f"{name}'s test split"))
        overlaps = [overlap for overlap in found if overlap]
        for overlap in overlaps:
            tell(str(overlap))
        entry["overlaps"] = [asdict(overlap) for overlap in overlaps]
        refused += len(overlaps) if train else 0
    if refused and request.strict:
        raise Refused(f"{name}: overlaps {refused} evaluation sets, and --strict refuses that")


def _dev_size(request: Request, records: int) -> int:
    if request.dev is not None:
        size = request.dev
    elif request.dev_fraction is not None:
        size = round(request.dev_fraction * records)
    else:
        return min(MAX_DEV_RECORDS, int(MAX_DEV_SHARE * records))
    if size >= records:
        raise DataError(f"--dev: {size} of {records} records would leave none to train on")
    return size
