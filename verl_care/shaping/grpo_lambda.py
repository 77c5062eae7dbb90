"""GRPO-lambda: the length penalty acts only in the batch's best-solved groups. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from verl_care.shaping import groups
from verl_care.shaping.base import Properties, ShapingBatch, register_rule
from verl_care.shaping.efficient_reasoning import compute_logistic_penalty
from verl_care.shaping.length_rule import LengthRule, group_uniform, pass_rate, require


@register_rule
@dataclass(frozen=True, kw_only=True)
class GrpoLambdaRule(LengthRule):
    """bonus = -alpha * sigmoid(z) for right answers of the top groups, 0 elsewhere; z over the group's right answers.

    The top groups are the ``top_share`` of the batch's groups with the highest share of right answers, at least one,
    rounded up. Among groups of equal share a hash of step and prompt key decides, so that row order does not.
    """

    name: ClassVar[str] = "grpo_lambda"
    source: ClassVar[str] = "arXiv 2505.18086 (formula, lambda = 20 %); alpha 0.6 from a port for OpenRLHF"
    properties: ClassVar[Properties] = Properties(
        ranks_wrong_by_length=False, signal_when_all_right=True, right_below_wrong=False
    )

    top_share: float = 0.2
    """lambda: share of the groups that the length penalty reaches."""
    alpha: float = 0.6
    """Largest loss of a right answer; the value of a third-party port, not confirmed against the paper."""
    eps: float = 1e-7
    """Added to the standard deviation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.top_share <= 1, "top_share", self.top_share, "a number in [0, 1]")
        require(0 <= self.alpha < 1, "alpha", self.alpha, "a number in [0, 1)")
        require(self.eps > 0, "eps", self.eps, "a number > 0")

    def compute_bonus(self, batch: ShapingBatch, state: Any) -> Tensor:
        index_N, num_groups = groups.index_groups(batch.group)
        order_G = torch.argsort(group_uniform(batch, index_N, num_groups), stable=True)
        rate_G = pass_rate(batch, index_N, num_groups)
        order_G = order_G[torch.argsort(rate_G[order_G], descending=True, stable=True)]
        num_top = max(1, math.ceil(self.top_share * num_groups)) if self.top_share > 0 else 0
        top_G = torch.zeros(num_groups, dtype=torch.bool, device=rate_G.device)
        top_G[order_G[:num_top]] = True
        penalty_N = compute_logistic_penalty(batch, self.alpha, self.eps)
        return torch.where(top_G[index_N], penalty_N, torch.zeros_like(penalty_N))
