"""Exploratory annealed decoding: a sampling temperature that falls along the response. Pure.

Source: "Let it Calm", arXiv 2510.05251; yangalan123/ead_rlvr, the mode ``negexp`` of its logits processor. With t the
tokens so far and s the training step,

    tau_t = max(1 + tau_max - exp(t / d_s), tau_min),   d_s = 20 min(d_0 + 5 s, 40000),   tau_t = 1 for t < warm-up

It moves what is sampled alone: log-probabilities, in the rollout engine too, stay those of the policy that is trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from verl_care.config import AnnealingConfig

ANNEALING_COLUMN = "care_annealing"
"""Column of a training row, and key of a request's ``extra_args``: the schedule of its step. Rows of a validation do
not have it."""

TOKENS_OF_DECAY = 20
"""Tokens that one unit of ``decay`` stands for in the published code."""


def schedule_of(step: int, config: AnnealingConfig) -> dict[str, float]:
    """What a rollout engine needs to know at a step (from 1): tau_max, tau_min, decay_tokens and warm_up."""
    decay = min(config.decay + config.decay_growth * (step - 1), config.decay_max)
    return {
        "tau_max": config.tau_max,
        "tau_min": config.tau_min,
        "decay_tokens": float(TOKENS_OF_DECAY * decay),
        "warm_up": float(config.warm_up),
    }


def temperature_factor(num_tokens: int, schedule: Mapping[str, float]) -> float:
    """What the run's temperature is multiplied with for the token that follows ``num_tokens`` others."""
    if num_tokens < schedule["warm_up"]:
        return 1.0
    # Beyond this the exponential is above every temperature, and might overflow.
    grown = math.exp(min(num_tokens / schedule["decay_tokens"], 50.0))
    return max(1 + schedule["tau_max"] - grown, schedule["tau_min"])
