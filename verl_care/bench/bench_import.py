"""``import verl`` with verl_care's plugin against without, and our own command line."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from typing import Any

from verl_care.bench.clock import summary, take_turns


def measure(*, repeats: int = 5) -> dict[str, Any]:
    """CPU seconds of fresh processes."""

    def arm(*command: str, plugins: str = "auto") -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        environ = {**os.environ, "VERL_USE_EXTERNAL_PLUGINS": plugins}
        subprocess.run(
            [sys.executable, *command], env=environ, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    found = take_turns(
        {
            "ours": lambda: arm("-c", "import verl"),
            "stock": lambda: arm("-c", "import verl", plugins="none"),
            "import verl_care": lambda: arm("-c", "import verl_care"),
            "verl-care --help": lambda: arm("-m", "verl_care.cli", "--help"),
        },
        repeats,
    )
    ours, stock = summary(found["ours"]), summary(found["stock"])
    return {
        "work": "import verl in a fresh process, with the plugin and without",
        "unit": "CPU seconds",
        "ours": ours,
        "stock": stock,
        "ratio": round(ours["median"] / stock["median"], 3),
        "own": {name: summary(found[name]) for name in ("import verl_care", "verl-care --help")},
    }
