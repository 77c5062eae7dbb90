"""Arora and Zanette: a right answer loses up to alpha, by how long it is among the group's right ones. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from verl_care.shaping import groups
from verl_care.shaping.base import Properties, ShapingBatch, register_rule
from verl_care.shaping.length_rule import LengthRule, require


def compute_logistic_penalty(batch: ShapingBatch, alpha: float, eps: float) -> Tensor:
    """-alpha * sigmoid((l - mean) / (std + eps)) for right answers, 0 for wrong ones, (N,).

    Mean and population standard deviation are those of the right answers of the group.
    """
    index_N, num_groups = groups.index_groups(batch.group)
    mean_G = groups.masked_mean(batch.length, batch.correct, index_N, num_groups)
    std_G = groups.masked_variance(batch.length, batch.correct, index_N, num_groups).sqrt()
    z_N = (batch.length - mean_G[index_N]) / (std_G[index_N] + eps)
    return torch.where(batch.correct, -alpha * torch.sigmoid(z_N), torch.zeros_like(z_N))


@register_rule
@dataclass(frozen=True, kw_only=True)
class EfficientReasoningRule(LengthRule):
    """r' = right * (1 - alpha * sigmoid(z)), z = (l - mean) / std over the right answers of the group."""

    name: ClassVar[str] = "efficient_reasoning"
    source: ClassVar[str] = "arXiv 2502.04463; Zanette-Labs/efficient-reasoning math_server.py, run_rloo_1.5B.sh"
    properties: ClassVar[Properties] = Properties(
        ranks_wrong_by_length=False, signal_when_all_right=True, right_below_wrong=False
    )

    alpha: float = 0.1
    """Largest loss of a right answer (run_rloo_1.5B.sh); hkust-nlp/Laser uses 0.4."""
    eps: float = 1e-7
    """Added to the standard deviation (math_server.py)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.alpha < 1, "alpha", self.alpha, "a number in [0, 1)")
        require(self.eps > 0, "eps", self.eps, "a number > 0")

    def compute_bonus(self, batch: ShapingBatch, state: Any) -> Tensor:
        return compute_logistic_penalty(batch, self.alpha, self.eps)
