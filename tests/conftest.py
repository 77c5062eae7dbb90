"""Skips what this machine cannot run: tests marked `gpu` without a GPU, tests marked `vllm` without vLLM.

Ray and TransferQueue come as fixtures of our own plugin; they start only when a test asks for them.
"""

import importlib.util

import pytest

pytest_plugins = ["verl_care.testing.plugin"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu:
        import torch

        if not torch.cuda.is_available():
            for item in gpu:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    if importlib.util.find_spec("vllm") is None:
        for item in items:
            if item.get_closest_marker("vllm"):
                item.add_marker(pytest.mark.skip(reason="needs vLLM: make test-vllm"))
