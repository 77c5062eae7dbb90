"""Engine ``hf``: transformers, on a CPU or a GPU, each answer with random draws of its own.

Samples by ``workers.cpu.generation``, as the rollout engine of that name does: what a request gives depends on its seed
and, but for rounding, not on what it is batched with. Videos of Qwen2.5-VL stand where the recipes' training has them;
with ``positions=stock``, and for other models, where transformers' own ``generate`` has them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from verl_care.evaluation.engines import EngineConfig
from verl_care.evaluation.engines.media import Prepared, PromptReader, cut_at_stop
from verl_care.evaluation.interface import TRUNCATED, Completion, Generated, Request
from verl_care.workers.cpu import generation
from verl_care.workers.positions import SECONDS, use_seconds

_DEFAULT_MAX_TOKENS = 1024


class TransformersEngine:
    """A transformers model with its processor.

    Args:
        config: see ``EngineConfig``.

    Raises:
        OSError: no model there.
    """

    def __init__(self, config: EngineConfig) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

        self.config = config
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        options = {"trust_remote_code": config.trust_remote_code}
        dtype = config.dtype or ("float32" if self.device.type == "cpu" else "auto")
        hf_config = AutoConfig.from_pretrained(config.model, **options)
        has_vision = type(hf_config) in AutoModelForImageTextToText._model_mapping
        auto_class = AutoModelForImageTextToText if has_vision else AutoModelForCausalLM
        model = auto_class.from_pretrained(config.model, dtype=dtype, **options)
        self._model = model.to(self.device).eval()
        self._processor = AutoProcessor.from_pretrained(config.model, **options)
        if config.positions == SECONDS:
            self._processor.config = self._model.config
            use_seconds(self._processor)
        self._tokenizer = getattr(self._processor, "tokenizer", self._processor)
        self._reader = PromptReader(self._processor, config.num_workers)
        declared = self._model.generation_config.eos_token_id
        ends = {self._tokenizer.eos_token_id, *(declared if isinstance(declared, list) else [declared])}
        self._eos = frozenset(token for token in ends if token is not None)
        self._pad = self._tokenizer.pad_token_id or 0
        self._banned = _banned_ids(self._model.config, len(self._tokenizer))
        limit = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        self._max_len = config.max_model_len or limit

    def describe(self) -> dict[str, Any]:
        """See ``Engine``."""
        import transformers

        return {
            "engine": "hf",
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "device": self.device.type,
            "positions": self.config.positions,
        }

    def prefetch(self, requests: Sequence[Request]) -> None:
        """See ``Engine``."""
        self._reader.prefetch(requests)

    def close(self) -> None:
        """See ``Engine``."""
        self._reader.close()
        del self._model
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def __call__(self, requests: Sequence[Request]) -> list[Generated]:
        """See ``Engine``."""
        found: list[Generated] = [None] * len(requests)
        ready: list[tuple[int, generation.Request]] = []
        inputs: dict[int, tuple[list[int], torch.Tensor, dict[str, torch.Tensor]]] = {}
        for place, (request, prepared) in enumerate(zip(requests, self._reader.take(requests), strict=True)):
            if isinstance(prepared, Exception):
                found[place] = prepared
                continue
            sampling = self._sampling(request.sampling)
            try:
                if id(prepared) not in inputs:
                    inputs[id(prepared)] = self._process(prepared)
                prompt_ids, position_ids, vision = inputs[id(prepared)]
                self._check_length(len(prompt_ids), sampling.max_tokens)
            except Exception as error:
                found[place] = error
                continue
            row = generation.Request(
                prompt_ids=prompt_ids,
                position_ids=position_ids,
                sampling=sampling,
                vision=vision,
                prompt_key=id(prepared),
            )
            ready.append((place, row))
        for first in range(0, len(ready), self.config.batch_size):
            part = ready[first : first + self.config.batch_size]
            for (place, row), outcome in zip(part, self._generate([row for _, row in part]), strict=True):
                found[place] = (
                    outcome
                    if isinstance(outcome, Exception)
                    else self._completion(outcome, row, requests[place].sampling.get("stop") or ())
                )
        return found

    def _generate(self, rows: list[generation.Request]) -> Sequence[generation.Completion | Exception]:
        options = {"eos_token_ids": self._eos, "pad_token_id": self._pad, "banned_ids": self._banned}
        try:
            return generation.generate(self._model, rows, **options)
        except (RuntimeError, ValueError, IndexError) as error:
            if len(rows) == 1:
                return [error]
        # Which of them it was shows when each is asked alone.
        return [outcome for row in rows for outcome in self._generate([row])]

    def _check_length(self, prompt: int, answer: int) -> None:
        if self._max_len is not None and prompt + answer > self._max_len:
            raise ValueError(
                f"prompt of {prompt} tokens and {answer} for the answer are more than the model's {self._max_len}; "
                "ask with fewer frames or pixels, or shorter answers"
            )

    def _sampling(self, params: Mapping[str, Any]) -> generation.Sampling:
        params = dict(params)
        stop_ids = list(params.pop("stop_token_ids", None) or ())
        for stop in params.pop("stop", None) or ():
            # A stop string of several tokens is cut from the text afterwards.
            ids = self._tokenizer(stop, add_special_tokens=False)["input_ids"]
            stop_ids += ids if len(ids) == 1 else []
        values = {name: params.pop(name) for name in list(params) if name in _SAMPLING}
        if params:
            raise ValueError(f"engine hf does not know the sampling parameters {sorted(params)}; it knows {_SAMPLING}")
        return generation.Sampling(**{"max_tokens": _DEFAULT_MAX_TOKENS, **values}, stop_token_ids=tuple(stop_ids))

    def _process(self, prepared: Prepared) -> tuple[list[int], torch.Tensor, dict[str, torch.Tensor]]:
        """Token ids with expanded placeholders, their positions (C, L), and the model's other inputs."""
        if self._processor is self._tokenizer:
            ids = self._tokenizer(prepared.text, add_special_tokens=False)["input_ids"]
            return ids, torch.arange(len(ids))[None], {}
        media: dict[str, Any] = {}
        if prepared.images:
            media["images"] = prepared.images
        if prepared.videos:
            frames, metadata = zip(*prepared.videos, strict=True)
            media |= {"videos": list(frames), "video_metadata": list(metadata), "do_sample_frames": False}
        inputs = dict(self._processor(text=[prepared.text], return_tensors="pt", **media))
        ids_1L = inputs["input_ids"]
        vision = {name: inputs[name] for name in generation.MODEL_INPUTS if inputs.get(name) is not None}
        return ids_1L[0].tolist(), self._positions(ids_1L, inputs, bool(vision)), vision

    def _positions(self, ids_1L: torch.Tensor, inputs: Mapping[str, Any], has_vision: bool) -> torch.Tensor:
        plain = torch.arange(ids_1L.shape[1])[None]
        own = getattr(getattr(self._model, "model", None), "get_rope_index", None)
        find = getattr(self._processor, "get_rope_index", own)
        if find is None:
            return plain
        if not has_vision:
            # Three equal axes, which is what text has in M-RoPE.
            return plain.expand(3, -1).clone()
        known = inspect.signature(find).parameters
        arguments = {name: inputs[name] for name in known if inputs.get(name) is not None and name != "attention_mask"}
        if "second_per_grid_ts" in arguments:
            arguments["second_per_grid_ts"] = torch.as_tensor(arguments["second_per_grid_ts"])
        return find(**arguments, attention_mask=torch.ones_like(ids_1L))[0][:, 0]

    def _completion(self, outcome: generation.Completion, row: generation.Request, stops: Sequence[str]) -> Completion:
        ids = outcome.token_ids
        reason = TRUNCATED if outcome.stop_reason == "length" else "stop"
        text = self._decode(ids)
        cut = cut_at_stop(text, stops)
        if cut is not None:
            # As many tokens as it takes to say the stop string; the longer the prefix, the more is said.
            low, high = 1, len(ids)
            while low < high:
                middle = (low + high) // 2
                said = cut_at_stop(self._decode(ids[:middle]), stops) is not None
                low, high = (low, middle) if said else (middle + 1, high)
            text, ids, reason = cut, ids[:low], "stop"
        return Completion(text, len(ids), reason, len(row.prompt_ids))

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


_SAMPLING = (
    "max_tokens",
    "temperature",
    "top_k",
    "top_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
)


def _banned_ids(config: Any, num_tokens: int) -> frozenset[int]:
    """Tokens never to sample: marks of media, and ids beyond the tokenizer."""
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    marks = [getattr(config, name, None) for name in names]
    return frozenset(mark for mark in marks if mark is not None) | frozenset(
        range(num_tokens, config.get_text_config().vocab_size)
    )
