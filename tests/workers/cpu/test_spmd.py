"""verl's programs under torchrun, on the CPU."""

import subprocess
import sys

import pytest
import torch.distributed
import verl.utils.distributed as module

from verl_care.workers.cpu import spmd


def test_torch_still_refuses_what_verl_asks_for_on_the_cpu(monkeypatch):
    """The reason for the replacement; where this fails, verl or torch has mended it and the replacement can go."""
    original = module.initialize_global_process_group.__wrapped__
    monkeypatch.setattr(module, "get_device_name", lambda: "cpu")
    monkeypatch.setattr(module, "get_nccl_backend", lambda: "gloo")
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "0")
    with pytest.raises(ValueError, match="cpu"):
        original()
    assert not torch.distributed.is_initialized()


def test_the_group_is_made_in_a_process_of_torchruns():
    code = (
        "import verl.utils.distributed as d, torch.distributed as t; print(d.initialize_global_process_group());"
        "print(t.get_backend(), t.get_world_size()); d.destroy_global_process_group()"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1", "--no-python"]
    done = subprocess.run([*command, sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-2:] == ["(0, 0, 1)", "gloo 1"]


def test_other_platforms_keep_verls_own(monkeypatch):
    called = []

    class Module:
        initialize_global_process_group = staticmethod(lambda timeout_second=36000: called.append(timeout_second))

    spmd.register(Module)
    replaced = Module.initialize_global_process_group
    spmd.register(Module)
    assert Module.initialize_global_process_group is replaced
    monkeypatch.setattr("verl.utils.device.get_device_name", lambda: "cuda")
    replaced(7)
    assert called == [7]
