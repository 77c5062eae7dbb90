"""GRPO-LEAD: right answers are worth exp(-alpha z) of their length, wrong ones -1. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from verl_care.shaping import groups
from verl_care.shaping.base import Properties, Shaped, ShapingBatch, register_rule
from verl_care.shaping.length_rule import LengthRule, pass_rate, require


def compute_difficulty_weight(
    pass_rate: Tensor, *, low: float = 0.4, high: float = 1.5, middle: float = 0.75, steepness: float = 10.0
) -> Tensor:
    """GRPO-LEAD's weight of advantages: w(p) = A + (B - A) / (1 + exp(k * (p - p0))).

    Positive advantages are multiplied by w(p), the others by w(1 - p). It acts after the group normalisation and is
    therefore no part of the bonus but an advantage of its own (GRPO-LEAD core_algos.py).

    Args:
        pass_rate: share of right answers in the group, any shape, in [0, 1].
    """
    return low + (high - low) / (1 + torch.exp(steepness * (pass_rate - middle)))


@register_rule
@dataclass(frozen=True, kw_only=True)
class GrpoLeadRule(LengthRule):
    """r' = exp(-alpha * z) if right, ``wrong_reward`` if wrong; z over the group's right answers, sample deviation."""

    name: ClassVar[str] = "grpo_lead"
    source: ClassVar[str] = "arXiv 2504.09696; aeroplanepaper/GRPO-LEAD verl/trainer/main_ppo.py get_reweight_rewards"
    properties: ClassVar[Properties] = Properties(
        ranks_wrong_by_length=False, signal_when_all_right=True, right_below_wrong=False
    )

    alpha: float = 0.05
    """Strength of the length term."""
    wrong_reward: float = -1.0
    """Reward of a wrong answer in place of 0."""
    skip_below_tokens: float = 0.0
    """Groups whose three shortest answers average to at most this many tokens get no length term (code: 4000); the
    default shapes every group. A group of fewer than three is never skipped."""
    eps: float = 1e-6
    """Added to the standard deviation."""
    difficulty_weight: bool = True
    """Multiplies advantages by ``compute_difficulty_weight``, as published; False leaves them to verl."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.alpha >= 0, "alpha", self.alpha, "a number >= 0")
        require(self.skip_below_tokens >= 0, "skip_below_tokens", self.skip_below_tokens, "a number >= 0")
        require(self.eps > 0, "eps", self.eps, "a number > 0")

    def shape(self, batch: ShapingBatch, state: Any) -> tuple[Shaped, Any]:
        shaped, state = super().shape(batch, state)
        if not self.difficulty_weight:
            return shaped, state
        advantage_N = groups.group_advantage(batch.score + shaped.bonus, batch.group, norm_by_std=batch.norm_by_std)
        index_N, num_groups = groups.index_groups(batch.group)
        rate_N = pass_rate(batch, index_N, num_groups)[index_N]
        weight_N = compute_difficulty_weight(torch.where(advantage_N > 0, rate_N, 1 - rate_N))
        return replace(shaped, advantage=advantage_N * weight_N), state

    def compute_bonus(self, batch: ShapingBatch, state: Any) -> Tensor:
        index_N, num_groups = groups.index_groups(batch.group)
        length_N, right_N = batch.length, batch.correct
        mean_G = groups.masked_mean(length_N, right_N, index_N, num_groups)
        std_G = groups.masked_variance(length_N, right_N, index_N, num_groups, correction=1).sqrt()
        alone_G = groups.masked_count(right_N, index_N, num_groups) == 1
        std_G = torch.where(alone_G, torch.ones_like(std_G), std_G)
        z_N = (length_N - mean_G[index_N]) / (std_G[index_N] + self.eps)
        if self.skip_below_tokens > 0:
            z_N = torch.where(self._is_skipped(length_N, index_N, num_groups)[index_N], torch.zeros_like(z_N), z_N)
        right_bonus_N = torch.exp(-self.alpha * torch.where(right_N, z_N, torch.zeros_like(z_N))) - 1
        return torch.where(right_N, right_bonus_N, torch.full_like(z_N, self.wrong_reward))

    def _is_skipped(self, length_N: Tensor, index_N: Tensor, num_groups: int) -> Tensor:
        order_N = torch.argsort(length_N, stable=True)
        order_N = order_N[torch.argsort(index_N[order_N], stable=True)]
        size_G = groups.count(index_N, num_groups)
        start_G = torch.cumsum(size_G, 0) - size_G
        rank_N = torch.arange(length_N.numel(), device=length_N.device) - start_G[index_N[order_N]]
        among_shortest_N = torch.zeros_like(length_N, dtype=torch.bool)
        among_shortest_N[order_N] = rank_N < 3
        mean_G = groups.masked_mean(length_N, among_shortest_N, index_N, num_groups)
        return (mean_G <= self.skip_below_tokens) & (size_G >= 3)
