"""The process group of verl's programs that torchrun starts, on the CPU.

``verl.utils.distributed.initialize_global_process_group`` (0.9.1) asks torch for the backends ``cpu:gloo,<device>:…``,
which on the CPU names one device twice and is refused, and nothing before it can make the group instead: the function
takes no notice of one that is there. So it is replaced where the platform is the CPU, and left alone elsewhere. Goes
when verl asks for each device once; ``tests/workers/cpu/test_spmd.py`` fails then.
"""

from __future__ import annotations

import functools
import os
from datetime import timedelta
from types import ModuleType


def initialize_global_process_group(timeout_second: int = 36000) -> tuple[int, int, int]:
    """Makes the default process group over gloo from torchrun's environment.

    Returns:
        Local rank, rank and number of processes.
    """
    import torch.distributed

    torch.distributed.init_process_group(
        backend="gloo",
        timeout=timedelta(seconds=timeout_second),
        init_method=os.environ.get("DIST_INIT_METHOD"),
    )
    return tuple(int(os.environ[name]) for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE"))  # type: ignore[return-value]


def register(module: ModuleType) -> None:
    """Replaces verl's function in ``verl.utils.distributed``, for processes on the CPU (once)."""
    original = module.initialize_global_process_group
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def initialize(timeout_second: int = 36000) -> tuple[int, int, int]:
        from verl.utils.device import get_device_name

        chosen = initialize_global_process_group if get_device_name() == "cpu" else original
        return chosen(timeout_second)

    module.initialize_global_process_group = initialize  # type: ignore[attr-defined]
