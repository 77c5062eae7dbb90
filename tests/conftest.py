"""Skips tests marked `gpu` without a GPU, tests marked `vllm` without vLLM, and tests marked `slow` without `--slow`.

Ray and TransferQueue come as fixtures of our own plugin; they start only when a test asks for them.
"""

import importlib.util
from pathlib import Path

import pytest

pytest_plugins = ["verl_care.testing.plugin"]


@pytest.fixture(scope="session")
def demo_assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder as `verl-care demo` makes it, with its warm-started model; built once (half a minute)."""
    from verl_care.data import demo

    return demo.build_assets(folder=tmp_path_factory.mktemp("demo_assets") / "demo")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that take many minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="takes many minutes: --slow"))
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
