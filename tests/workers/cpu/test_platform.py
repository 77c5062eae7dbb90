"""When the CPU platform claims a process. Each case runs in a fork of one process that has imported verl."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from verl_care.workers.cpu.platform import joins_ray_cluster

# Forks, because verl settles on its platform once a process. `accelerator` stands in for a GPU that is there.
PROBE = """
import json, os, sys
import verl
from verl.plugin.platform import PlatformRegistry, get_platform
from verl.plugin.platform.platform_cuda import PlatformCUDA

class Present(PlatformCUDA):
    def is_platform_available(self, use_smi_check=False):
        return True

for case in json.load(sys.stdin):
    read, write = os.pipe()
    if os.fork() == 0:
        os.environ.update(case["env"])
        sys.argv = ["main_ppo", *case.get("argv", [])]
        if case.get("accelerator"):
            PlatformRegistry.register(platform="late")(Present)
        platform = get_platform()
        os.write(write, json.dumps({
            "device": platform.device_name,
            "handed_on": os.environ.get("VERL_PLATFORM"),
            "rollout_env": sorted(platform.rollout_env_vars()),
        }).encode())
        os._exit(0)
    os.close(write)
    print(os.read(read, 65536).decode(), flush=True)
    os.wait()
"""

needs_no_accelerator = pytest.mark.skipif(torch.cuda.is_available(), reason="an accelerator wins over the CPU")


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory) -> dict[str, dict]:
    """Name of the case -> what verl decided."""
    ray_started = tmp_path_factory.mktemp("ray_started")
    (ray_started / "ray").mkdir()
    (ray_started / "ray" / "ray_current_cluster").write_text("10.0.0.1:6379")
    cases = {
        "alone": {"env": {}},
        "own cluster by address": {"env": {"RAY_ADDRESS": "local"}},
        "cluster by RAY_ADDRESS": {"env": {"RAY_ADDRESS": "10.0.0.1:6379"}},
        "cluster by ray start": {"env": {"RAY_TMPDIR": str(ray_started)}},
        "cluster by argument": {"env": {}, "argv": ["+ray_kwargs.ray_init.address=auto"]},
        "own cluster by argument": {
            "env": {"RAY_ADDRESS": "10.0.0.1:6379"},
            "argv": ["+ray_kwargs.ray_init.address=local"],
        },
        "worker": {"env": {"RAY_JOB_ID": "01000000", "RAY_RAYLET_PID": "1"}},
        "worker told": {"env": {"RAY_JOB_ID": "01000000", "VERL_PLATFORM": "cpu"}},
        "told, with a cluster": {"env": {"RAY_ADDRESS": "10.0.0.1:6379", "VERL_PLATFORM": "cpu"}},
        "told otherwise": {"env": {"VERL_PLATFORM": "nvidia"}},
        "accelerator": {"env": {}, "accelerator": True},
    }
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "VERL_"))}
    probe = subprocess.run(
        [sys.executable, "-c", PROBE],
        input=json.dumps(list(cases.values())),
        env=clean | {"RAY_TMPDIR": str(tmp_path_factory.mktemp("ray_none"))},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert probe.returncode == 0, probe.stderr[-2000:]
    lines = [line for line in probe.stdout.splitlines() if line.startswith("{")]
    return dict(zip(cases, map(json.loads, lines), strict=True))


@needs_no_accelerator
@pytest.mark.parametrize("case", ["alone", "own cluster by address", "own cluster by argument"])
def test_a_process_on_its_own_is_claimed_and_hands_the_choice_on(verdicts, case):
    assert verdicts[case]["device"] == "cpu"
    assert verdicts[case]["handed_on"] == "cpu"


@pytest.mark.parametrize(
    "case", ["cluster by RAY_ADDRESS", "cluster by ray start", "cluster by argument", "worker", "accelerator"]
)
def test_a_process_of_a_cluster_or_with_an_accelerator_is_left_alone(verdicts, case):
    assert verdicts[case]["device"] == "cuda"
    assert verdicts[case]["handed_on"] is None
    # The settings for vLLM's CPU backend must not reach a GPU cluster's servers.
    assert not any(name.startswith("VLLM_CPU") for name in verdicts[case]["rollout_env"])


@pytest.mark.parametrize("case", ["worker told", "told, with a cluster"])
def test_verl_platform_decides(verdicts, case):
    assert verdicts[case]["device"] == "cpu"


def test_verl_platform_decides_against_it_too(verdicts):
    assert verdicts["told otherwise"]["device"] == "cuda"


def test_settings_of_vllm_on_the_cpu_come_with_the_platform(verdicts):
    assert {"VLLM_CPU_OMP_THREADS_BIND", "OMP_NUM_THREADS", "TORCHDYNAMO_DISABLE", "VERL_PLATFORM"} <= set(
        verdicts["worker told"]["rollout_env"]
    )


def test_a_cluster_noted_by_ray_start_is_seen(tmp_path: Path):
    environ = {"RAY_TMPDIR": str(tmp_path)}
    (tmp_path / "ray").mkdir()
    before = joins_ray_cluster(environ, [])
    (tmp_path / "ray" / "ray_current_cluster").write_text("10.0.0.1:6379")
    assert joins_ray_cluster(environ, [])
    assert not joins_ray_cluster(environ, ["ray_kwargs.ray_init.address='local'"])
    assert before == Path("/tmp/ray/ray_current_cluster").exists()


def test_device_module_answers_what_verl_asks_of_torch_cuda():
    from verl_care.workers.cpu.platform import PlatformCPU

    platform = PlatformCPU()
    module = platform.device_module
    assert platform.current_device() == torch.device("cpu")
    assert torch.ones(1).to(platform.current_device()).device.type == "cpu"
    assert not platform.is_ipc_supported() and platform.ray_resource_options(1) == {"num_gpus": 1}
    free, total = module.mem_get_info()
    assert 0 < free <= total
    for name in ("empty_cache", "synchronize", "ipc_collect", "current_stream", "reset_peak_memory_stats"):
        getattr(module, name)()
    assert module.max_memory_allocated() == module.memory_reserved() == 0
    state = module.get_rng_state()
    first = torch.rand(3)
    module.set_rng_state(state)
    assert torch.equal(first, torch.rand(3))
