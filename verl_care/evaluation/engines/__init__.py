"""Engines that answer `evaluation.interface.Request`s: ``hf`` (transformers) and ``vllm`` (vLLM offline)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from verl_care.evaluation.interface import Generated, Request
from verl_care.workers.positions import SECONDS, check_word

ENGINES = ("hf", "vllm")


class Engine(Protocol):
    """A model that answers; made by ``build_engine``."""

    def __call__(self, requests: Sequence[Request]) -> list[Generated]:
        """One entry a request, in order. What fails for one request is its entry; what fails for all is raised."""

    def prefetch(self, requests: Sequence[Request]) -> None:
        """Begins to read the media of requests that will be asked next; may do nothing."""

    def describe(self) -> dict[str, Any]:
        """Name, versions and precision, for the record of a run."""

    def close(self) -> None:
        """Frees the model."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How an engine is set up; plain values, so that it travels to other processes."""

    model: str
    """Folder or name of a Hugging Face model."""
    name: str = "hf"
    """One of ``ENGINES``."""
    batch_size: int = 16
    """Answers that transformers generates at once; vLLM schedules by itself."""
    max_model_len: int | None = None
    """Tokens of prompt and answer together; None for the model's own limit."""
    dtype: str | None = None
    """``float32``, ``bfloat16``, …; None: float32 on a CPU, else what the checkpoint says."""
    tensor_parallel_size: int = 1
    """GPUs a model is spread over (vLLM)."""
    gpu_memory_utilization: float = 0.85
    """Share of a GPU's memory (vLLM)."""
    replicas: int = 1
    """Copies of the model, each in a process of Ray with GPUs of its own, where there are any."""
    positions: str = SECONDS
    """How Qwen2.5-VL's videos are placed: by real seconds, as the recipes train, or as the engine's own library has it
    (``stock``). vLLM keeps that of a process's first engine."""
    num_workers: int = 8
    """Threads that read media."""
    trust_remote_code: bool = False
    """Run code that comes with the checkpoint."""


def build_engine(config: EngineConfig) -> Engine:
    """The engine that a config describes, its model loaded.

    Raises:
        ValueError: no engine of that name, or no such positions.
        ImportError: vLLM is not installed.
    """
    if config.name not in ENGINES:
        raise ValueError(f"engine: expected {' or '.join(ENGINES)}; got {config.name!r}")
    check_word("positions", config.positions)
    if config.replicas > 1:
        from verl_care.evaluation.engines.replicas import ReplicatedEngine

        return ReplicatedEngine(config)
    if config.name == "hf":
        from verl_care.evaluation.engines.hf import TransformersEngine

        return TransformersEngine(config)
    from verl_care.evaluation.engines.vllm import VllmEngine

    return VllmEngine(config)
