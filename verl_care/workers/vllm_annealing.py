"""vLLM's logits processor for annealed decoding: scales the logits of requests that carry a schedule.

vLLM takes log-probabilities before it with ``logprobs_mode=raw_logprobs``, so that they stay those of the policy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from verl_care.shaping.annealing import ANNEALING_COLUMN, temperature_factor


class AnnealedTemperature(AdapterLogitsProcessor):
    """Reads the schedule in a request's ``extra_args``; requests without one are left alone."""

    def is_argmax_invariant(self) -> bool:
        """A temperature does not move the most likely token: greedy requests need not pass here."""
        return True

    def new_req_logits_processor(self, params: SamplingParams) -> Callable[..., torch.Tensor] | None:
        """What scales one request's logits, from its tokens so far."""
        schedule: dict[str, Any] | None = (params.extra_args or {}).get(ANNEALING_COLUMN)
        if schedule is None:
            return None

        def scale(output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
            return logits / temperature_factor(len(output_ids), schedule)

        return scale
