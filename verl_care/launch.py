"""Runs verl's own ``main_ppo`` in a process of its own and leaves nothing behind, whatever ends it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def main_ppo(
    overrides: Sequence[str], *, log: Path, cwd: Path | None = None, environ: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen]:
    """Starts ``python -m verl.trainer.main_ppo`` and, on leaving, ends it and every process Ray started for it.

    Ctrl-C, SIGTERM and a closed terminal leave it too.

    Args:
        overrides: Hydra overrides.
        log: file that takes everything the run prints.
        cwd: working folder of the run.
        environ: variables set for the run, over those of this process.

    Yields:
        The process; its Ray session lives in a folder of its own, which is removed at the end.
    """
    # Short: Ray makes socket paths of it, which may have 107 characters.
    ray_folder = tempfile.mkdtemp(prefix="vc-", dir="/tmp")
    marker = f"RAY_TMPDIR={ray_folder}"
    inherited = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    with _exit_on(signal.SIGTERM, signal.SIGHUP):
        with open(log, "w", encoding="utf-8") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "verl.trainer.main_ppo", *overrides],
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                # verl's checkpoint manager leaves lock files in TMPDIR.
                env={**inherited, "RAY_TMPDIR": ray_folder, "TMPDIR": ray_folder, **(environ or {})},
                cwd=cwd,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            kill_run(process, marker)
            shutil.rmtree(ray_folder, ignore_errors=True)


@contextmanager
def _exit_on(*numbers: signal.Signals) -> Iterator[None]:
    """Within it these signals raise SystemExit, status 128 + number; those that are ignored or handled stay so."""
    # Only the main thread may set handlers, and only it is interrupted by them.
    is_main = threading.current_thread() is threading.main_thread()
    ours = [number for number in numbers if is_main and signal.getsignal(number) is signal.SIG_DFL]

    def leave(number: int, frame: object) -> None:
        # A second one does not break off the clean-up.
        for other in ours:
            signal.signal(other, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for number in ours:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def kill_run(process: subprocess.Popen, marker: str) -> None:
    """Kills a run: its process group, then whatever carries ``marker`` (``NAME=value``) in its environment.

    Ray's processes lead groups of their own and outlive their driver for a while.
    """
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
    # Killing one may leave another that was just being started, so until none is left.
    while left := processes_with(marker):
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)


def processes_with(marker: str) -> list[int]:
    """Processes, other than this one, whose environment holds ``marker`` (``NAME=value``). Linux only."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if marker.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def wait(process: subprocess.Popen, on_poll: Callable[[], None], interval_seconds: float = 0.5) -> int:
    """Waits for the end of a run and calls ``on_poll`` meanwhile; returns the exit status."""
    while True:
        try:
            status = process.wait(interval_seconds)
        except subprocess.TimeoutExpired:
            on_poll()
            continue
        on_poll()
        return status
