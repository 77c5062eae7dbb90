"""CPU seconds: of this process, or of it and everything it started. Wall time on a shared machine is mostly noise."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any


class TreeClock:
    """CPU seconds of this process and its descendants, the ended ones included as far as their parents waited."""

    def __init__(self) -> None:
        import psutil

        self._psutil = psutil
        self._root = psutil.Process(os.getpid())
        self._start = self._read()

    def _read(self) -> dict[int, float]:
        seconds = {}
        for process in (self._root, *self._root.children(recursive=True)):
            with suppress(self._psutil.Error):
                times = process.cpu_times()
                seconds[process.pid] = sum(times[:4])  # user, system, and of children that were waited for
        return seconds

    def seconds(self) -> float:
        """CPU seconds since this clock was made."""
        now = self._read()
        return sum(value - self._start.get(pid, 0.0) for pid, value in now.items())


def cpu_seconds(function: Callable[[], Any]) -> float:
    """CPU seconds of this process over one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def take_turns(arms: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Runs each arm once to warm up, then all of them in turn; what they return, by arm."""
    for arm in arms.values():
        arm()
    found: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, arm in arms.items():
            found[name].append(arm())
    return found


def summary(values: Iterable[float]) -> dict[str, Any]:
    """Median, least and largest of some measurements."""
    values = list(values)
    return {
        "median": round(statistics.median(values), 6),
        "min": round(min(values), 6),
        "max": round(max(values), 6),
        "runs": len(values),
    }
