"""The CPU as a platform of verl's registry: logical "GPU" resources, gloo, no device memory.

verl asks every registered platform whether the process may run on it. This one says yes only when no other platform
does and the process is free to start its own Ray: on the CPU-only head of a GPU cluster it would otherwise hand its
settings to the cluster's rollout servers. ``VERL_PLATFORM=cpu`` selects it without asking.
"""

import os
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry

PLATFORM_NAME = "cpu"


def joins_ray_cluster(environ: "os._Environ[str] | dict[str, str]", argv: list[str]) -> bool:
    """Return whether ``ray.init()`` in this process would join an existing cluster, or already has.

    Follows Ray's own order: an address argument, ``RAY_ADDRESS``, then the cluster that ``ray start`` noted in
    ``<temp dir>/ray/ray_current_cluster``.

    Args:
        environ: environment of the process.
        argv: command line; ``ray_kwargs.ray_init.address=…`` counts, ``local`` means a cluster of one's own.

    Returns:
        True in a worker process of Ray, with an address other than ``local``, or where ``ray start`` left a note.
    """
    if "RAY_RAYLET_PID" in environ or "RAY_JOB_ID" in environ:
        return True
    for argument in argv:
        key, _, value = argument.lstrip("+").partition("=")
        if key == "ray_kwargs.ray_init.address":
            return value.strip("'\"") not in ("", "local", "null")
    address = environ.get("RAY_ADDRESS", "")
    if address:
        return address != "local"
    temp_dir = Path(environ.get("RAY_TMPDIR") or environ.get("TMPDIR") or "/tmp")
    return any((root / "ray" / "ray_current_cluster").exists() for root in {temp_dir, Path("/tmp")})


def other_platform_available() -> bool:
    """Return whether any other registered platform claims this process (accelerators win over the CPU)."""
    for name in PlatformRegistry.registered_names():
        if name == PLATFORM_NAME:
            continue
        if PlatformRegistry.get(name)().is_platform_available(use_smi_check=True):
            return True
    return False


class _CPUDeviceModule(types.ModuleType):
    """``torch.cpu`` with the memory and event calls that verl makes on ``torch.cuda``, answered for host memory."""

    def __init__(self) -> None:
        super().__init__("verl_care.workers.cpu.device_module")

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def set_device(self, device: Any) -> None:
        """Nothing to select."""

    def get_device_name(self, device: Any = None) -> str:
        return "CPU"

    def empty_cache(self) -> None:
        """The allocator keeps no cache that can be released."""

    def ipc_collect(self) -> None:
        """No device memory is shared between processes."""

    def memory_allocated(self, device: Any = None) -> int:
        return 0

    def memory_reserved(self, device: Any = None) -> int:
        return 0

    def max_memory_allocated(self, device: Any = None) -> int:
        return 0

    def max_memory_reserved(self, device: Any = None) -> int:
        return 0

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        """No peak is kept."""

    def set_per_process_memory_fraction(self, fraction: float, device: Any = None) -> None:
        """Host memory is not divided between processes."""

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        import psutil

        memory = psutil.virtual_memory()
        return memory.available, memory.total

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)


class PlatformCPU(PlatformBase):
    """verl's platform interface on a machine without an accelerator."""

    _device_module = _CPUDeviceModule()

    @property
    def device_name(self) -> str:
        return "cpu"

    @property
    def vendor_name(self) -> str:
        return "cpu"

    @property
    def device_module(self) -> types.ModuleType:
        return self._device_module

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        """Claim the process when no accelerator does and no Ray cluster waits to be joined.

        A claim is passed on through ``VERL_PLATFORM``: the processes of the Ray that this one starts inherit it and
        need not, and could not, decide for themselves.
        """
        if joins_ray_cluster(os.environ, sys.argv[1:]) or other_platform_available():
            return False
        os.environ["VERL_PLATFORM"] = PLATFORM_NAME
        return True

    def current_device(self) -> torch.device:
        # verl passes this to `.to(...)`, where an int means a CUDA device.
        return torch.device("cpu")

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        """Nothing to select."""

    def synchronize(self, device_index: int | None = None) -> None:
        """Work on the CPU is done when the call returns."""

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        """The settings are those of a device allocator."""

    def empty_cache(self) -> None:
        """The allocator keeps no cache that can be released."""

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None:
        """No device profiler."""

    def profiler_stop(self) -> None:
        """No device profiler."""

    def ray_resource_name(self) -> str:
        # verl's resource pools count nothing but "GPU" and "NPU"; `ray_init.num_gpus` makes logical ones.
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False

    def rollout_env_vars(self) -> dict[str, str]:
        """Settings under which vLLM's CPU backend runs inside a rollout server."""
        return {
            "VERL_PLATFORM": PLATFORM_NAME,
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
            "TORCHDYNAMO_DISABLE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            # On the CPU vLLM takes the executor `uni` only with this; the engine still has a process of its own.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        }

    def cudart(self) -> None:
        return None


def register() -> None:
    """Enter the platform in verl's registry under the name ``cpu`` (once)."""
    if PlatformRegistry.get(PLATFORM_NAME) is not PlatformCPU:
        PlatformRegistry.register(platform=PLATFORM_NAME)(PlatformCPU)
