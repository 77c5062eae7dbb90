"""The entry point that vLLM calls in each of its processes."""

from __future__ import annotations

import importlib.metadata
import sys

import pytest

from verl_care.workers.cpu import vllm_plugin
from verl_care.workers.cpu.platform import PlatformCPU


@pytest.fixture
def custom_ops(monkeypatch):
    """vLLM's operators as it ships them, put back afterwards."""
    ops = pytest.importorskip("vllm._custom_ops")
    monkeypatch.setattr(ops, "_supports_onednn", True)
    return ops


@pytest.fixture
def on_cpu_platform(monkeypatch):
    """The environment of a rollout server."""
    for name, value in PlatformCPU().rollout_env_vars().items():
        monkeypatch.setenv(name, value)


def test_installed_as_a_plugin_of_vllm():
    [entry] = importlib.metadata.entry_points(group="vllm.general_plugins", name="verl_care_cpu")
    assert entry.load() is vllm_plugin.register


@pytest.mark.parametrize("platform", [None, "cuda"])
def test_leaves_vllm_alone_off_the_cpu_platform(monkeypatch, platform):
    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    if platform:
        monkeypatch.setenv("VERL_PLATFORM", platform)
    for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "vllm", None)  # an import of it would raise
    vllm_plugin.register()


@pytest.mark.vllm
def test_weights_stay_in_place_for_the_next_load(custom_ops, on_cpu_platform):
    import torch
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    def linear() -> torch.nn.Linear:
        layer = torch.nn.Linear(64, 32, bias=False)
        dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
        return layer

    # What the plugin is for. Once this holds no more, vLLM keeps the weight itself and the plugin can go.
    assert linear().weight.numel() == 0
    vllm_plugin.register()
    layer = linear()
    assert layer.weight.shape == (32, 64)
    x = torch.randn(3, 64)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(32, 64))  # a new weight is what the layer computes with
        torch.testing.assert_close(layer.cpu_linear(x, layer.weight, None), x @ layer.weight.T)
