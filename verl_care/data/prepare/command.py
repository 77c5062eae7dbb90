"""``verl-care prepare``: progress, messages and exit status around ``run.prepare``."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from verl_care.data.prepare.run import Request, prepare
from verl_care.data.prepare.table import PREPARERS, get_preparer
from verl_care.data.probe import Limits
from verl_care.data.records import DataError


def default_folder(name: str) -> Path:
    """Where a data set is written and the recipes look for it."""
    root = os.environ.get("VERL_CARE_DATA_DIR")
    return (Path(root) if root else Path.home() / "data" / "verl_care") / name


def list_preparers(as_json: bool = False) -> int:
    """Prints the table of data sets."""
    rows: list[dict[str, Any]] = [
        {
            "name": preparer.name,
            "kind": preparer.kind,
            "title": preparer.title,
            "files": list(preparer.files),
            "prompt": preparer.prompt,
            "options": {
                key: list(value) if isinstance(value, tuple) else value for key, value in preparer.options.items()
            },
        }
        for preparer in PREPARERS.values()
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return 0
    for row in rows:
        print(f"{row['name']} ({row['kind']}): {row['title']}")
        print(f"    --source: {row['files'][0]} or its folder")
        for key, value in row["options"].items():
            print(f"    --set {key}={' | '.join(value) if isinstance(value, list) else value}")
    return 0


def main(
    name: str,
    *,
    source: Path,
    videos: Path | None,
    out: Path | None,
    min_seconds: float,
    max_seconds: float | None,
    as_json: bool,
    **request: Any,
) -> int:
    """Prepares a data set; see ``run.Request`` for the rest.

    Returns:
        Exit status: 0; 1 where something is faulty, missing or refused; 130 after Ctrl-C.
    """
    console, errors = Console(highlight=False), Console(file=sys.stderr, highlight=False, soft_wrap=True)
    out = out or default_folder(name)
    limits = Limits(min_seconds=min_seconds, max_seconds=math.inf if max_seconds is None else max_seconds)
    videos = videos or (source if source.is_dir() else source.parent)
    columns = (TextColumn("looking at clips"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=errors, transient=True) as progress:
            task = progress.add_task("", total=None, visible=False)
            manifest = prepare(
                get_preparer(name),
                Request(source=source, videos=videos, out=out, limits=limits, **request),
                tell=lambda line: errors.print(line, markup=False),
                on_probe=lambda done, total: progress.update(task, completed=done, total=total, visible=True),
            )
    except (DataError, OSError) as error:
        errors.print(f"error: {error}", markup=False)
        return 1
    except KeyboardInterrupt:
        errors.print("interrupted; the clips that were looked at are kept, run the same command again to go on")
        return 130
    if as_json:
        print(json.dumps(manifest, indent=2, default=str))
        return 0
    _summarise(console, manifest, out)
    return 0


def _summarise(console: Console, manifest: Mapping[str, Any], out: Path) -> None:
    for split, entry in manifest["splits"].items():
        counts = entry["counts"]
        left = [f"{counts[key]} {key}" for key in ("left out by options", "faulty") if counts[key]]
        left += [f"{count} {cause}" for cause, count in counts["quarantined"].items()]
        console.print(f"{split}: {counts['published']} published records{'; ' if left else ''}{', '.join(left)}")
        for file, written in entry["files"].items():
            console.print(f"  {out / file}: {written['records']} records", markup=False, soft_wrap=True)
