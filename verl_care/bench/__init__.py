"""Measurements of verl_care against stock verl, on this machine: ``verl-care bench``.

Each benchmark runs both arms in one process, or in runs that take turns, on the same work, and prints one JSON line.
Nothing is imported here that a benchmark of imports would count.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

NAMES = ("video", "step", "reward", "shaping", "import")


def run(name: str, **options: Any) -> int:
    """Run one benchmark and print its line; the exit status."""
    module = importlib.import_module(f"verl_care.bench.bench_{name}")
    try:
        # What verl prints on the way is not part of the result.
        with contextlib.redirect_stdout(sys.stderr):
            result = module.measure(**options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (OSError, RuntimeError, ValueError) as error:
        print(f"error: bench {name}: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"benchmark": name, **result, "machine": machine()}), flush=True)
    return 0


def machine() -> dict[str, Any]:
    """What ran the benchmark."""
    import os

    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    versions = {}
    for package in ("verl", "torch", "transformers", "av", "ray"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(), **versions}
