"""The per-rollout log: one Parquet file an update under ``<trainer.default_local_dir>/care_rollouts``.

A file is written whole and then renamed, so a reader never sees half of one. A run that begins at a checkpoint removes
the files of later steps, which it will run again: the folder always tells one history. With ``remove_oldest`` it is the
end of that history.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("update", pa.int64()),
        ("uid", pa.string()),
        ("session", pa.int64()),
        ("prompt_key", pa.string()),
        ("data_source", pa.string()),
        ("response", pa.string()),
        ("pred", pa.string()),
        ("acc", pa.float32()),
        ("acc_strict", pa.float32()),
        ("acc_lenient", pa.float32()),
        ("acc_shuffled", pa.float32()),
        ("acc_answer", pa.float32()),
        ("acc_iou", pa.float32()),
        ("format", pa.float32()),
        ("unparsed", pa.float32()),
        ("reward_error", pa.float32()),
        ("score", pa.float32()),
        ("bonus", pa.float32()),
        ("temporal_bonus", pa.float32()),
        ("reward", pa.float32()),
        ("pass_rate", pa.float32()),
        ("length", pa.int64()),
        ("effort_ratio", pa.float32()),
        ("stage", pa.string()),
        ("evicted_pass_rate", pa.list_(pa.float32())),
        ("tokens_selected", pa.int64()),
        ("tokens", pa.list_(pa.string())),
        ("token_signals", pa.list_(pa.int8())),
        ("visual_scores", pa.list_(pa.float32())),
        ("temporal_scores", pa.list_(pa.float32())),
        ("entropy_scores", pa.list_(pa.float32())),
        ("visual_share", pa.float32()),
        ("temporal_share", pa.float32()),
        ("entropy_share", pa.float32()),
    ]
)
"""Columns of a file. ``length`` in tokens; ``reward`` = ``score`` + ``bonus``; null where a run has no such value.
``evicted_pass_rate`` repeats on every row the pass rates of groups that group filtering removed in this update.
``tokens`` holds the text of each token of some responses, ``token_signals`` a sum of ``TOKEN_BITS`` for each of them,
``…_scores`` what they were selected by; ``…_share`` is the share of the response's tokens that a signal chose."""

TOKEN_BITS = {"visual": 1, "temporal": 2, "entropy": 4, "selected": 8}
"""What ``token_signals`` adds up: a signal chose the token; it trains."""

FOLDER = "care_rollouts"


class RolloutLog:
    """Writes the log of a run.

    Args:
        run_dir: ``trainer.default_local_dir``.
        max_bytes: size of the folder that ``when_full`` speaks of.
        when_full: ``no_texts``: response texts are left out of further files, numbers never are; ``remove_oldest``: the
            files of the oldest steps are removed until the folder fits, all but those of the step being written.
    """

    def __init__(self, run_dir: str | os.PathLike[str], max_bytes: int, when_full: str = "no_texts") -> None:
        self.folder = Path(run_dir) / FOLDER
        self.max_bytes = max_bytes
        self.when_full = when_full
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sizes = {path: path.stat().st_size for path in sorted(_files_in(self.folder), key=_order)}
        self._bytes = sum(self._sizes.values())

    @property
    def keeps_text(self) -> bool:
        """Whether response texts are written."""
        return self.when_full == "remove_oldest" or self._bytes < self.max_bytes

    def remove_after(self, step: int) -> int:
        """Removes the files of steps after ``step``, which an abandoned run left; returns how many there were."""
        abandoned = [path for path in self._sizes if _order(path)[0] > step]
        for path in abandoned:
            self._remove(path)
        return len(abandoned)

    def _remove(self, path: Path) -> None:
        self._bytes -= self._sizes.pop(path)
        # Someone may have cleaned up by hand.
        path.unlink(missing_ok=True)

    def _remove_oldest(self, step: int) -> None:
        """Removes whole steps before ``step`` until the folder fits."""
        while self._bytes > self.max_bytes:
            oldest = _order(next(iter(self._sizes)))[0]
            if oldest >= step:
                break
            for path in [path for path in self._sizes if _order(path)[0] == oldest]:
                self._remove(path)

    def write(self, step: int, update: int, columns: dict[str, Any]) -> Path:
        """Writes the rollouts of one update.

        Args:
            step: verl's ``global_steps``.
            update: 0, or the number of the update within a step that makes several.
            columns: of ``SCHEMA``, lists of equal length; missing ones become null.
        """
        num_rows = len(columns["uid"])
        filled = {
            **{name: [None] * num_rows for name in SCHEMA.names},
            **columns,
            "step": [step] * num_rows,
            "update": [update] * num_rows,
        }
        path = self.folder / (f"{step}.parquet" if update == 0 else f"{step}_{update}.parquet")
        partial = path.with_suffix(f".partial{os.getpid()}")
        pq.write_table(pa.table(filled, schema=SCHEMA), partial, compression="zstd")
        os.replace(partial, path)
        self._bytes -= self._sizes.pop(path, 0)
        self._sizes[path] = path.stat().st_size
        self._bytes += self._sizes[path]
        if self.when_full == "remove_oldest":
            self._remove_oldest(step)
        return path


def log_files(run_dir: str | os.PathLike[str]) -> list[Path]:
    """Files of a run's log in the order of its updates; ``run_dir`` is the run's folder or the log's own.

    Raises:
        FileNotFoundError: no log there; names the folder looked in.
    """
    run_dir = Path(run_dir)
    folder = run_dir if run_dir.name == FOLDER else run_dir / FOLDER
    paths = _files_in(folder)
    if not paths:
        raise FileNotFoundError(f"no rollout log in {folder}: expected <step>.parquet files of a verl_care run")
    return sorted(paths, key=_order)


def _files_in(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*.parquet") if path.stem.replace("_", "").isdigit()]


def _order(path: Path) -> list[int]:
    return [int(part) for part in path.stem.split("_")]


def read_log(run_dir: str | os.PathLike[str], columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Tables of a run's log, one an update, in order."""
    for path in log_files(run_dir):
        yield pq.read_table(path, columns=columns)
