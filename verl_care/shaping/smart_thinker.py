"""SmartThinker: tokens beyond an estimated best length cost as much as right answers can bear. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from verl_care.shaping import groups
from verl_care.shaping.base import Properties, ShapingBatch, register_rule
from verl_care.shaping.length_rule import LengthRule, require


@register_rule
@dataclass(frozen=True, kw_only=True)
class SmartThinkerRule(LengthRule):
    """bonus = -weight * e, e = max(0, l - best) for right answers, 0 for wrong ones.

    weight = (1 - p) / (max e over right - mean e over all + eps), the largest that leaves no right answer a negative
    advantage; 0 in groups that are all right or all wrong.
    best, with population variances v and means m of right (c) and all lengths: min l if all are right, else
    (v_c * m - v * m_c) / (v_c - v) clipped to [min l, max l] for v_c < v; min l for v_c > v; for equal ones max l if
    m_c < m, else min l. The last case looks inverted; it stands as published.
    """

    name: ClassVar[str] = "smart_thinker"
    source: ClassVar[str] = "arXiv 2603.08000; SmartThinker src/workers/reward_manager/SmartThinker.py"
    properties: ClassVar[Properties] = Properties(
        ranks_wrong_by_length=False, signal_when_all_right=False, right_below_wrong=False
    )

    eps: float = 1e-6
    """Added to the denominator of the weight; also how close variances count as equal."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.eps > 0, "eps", self.eps, "a number > 0")

    def compute_bonus(self, batch: ShapingBatch, state: Any) -> Tensor:
        index_N, num_groups = groups.index_groups(batch.group)
        # Differences of variances of thousands of tokens need more than float32's seven digits.
        length_N, right_N = batch.length.double(), batch.correct
        best_N = self._best_length(length_N, right_N, index_N, num_groups)[index_N]
        excess_N = torch.where(right_N, (length_N - best_N).clamp(min=0), torch.zeros_like(length_N))
        most_G = groups.masked_max(excess_N, right_N, index_N, num_groups).clamp(min=0)
        rate_G = groups.mean(right_N.double(), index_N, num_groups)
        weight_G = (1 - rate_G) / (most_G - groups.mean(excess_N, index_N, num_groups) + self.eps)
        mixed_G = (rate_G > 0) & (rate_G < 1)
        weight_G = torch.where(mixed_G, weight_G, torch.zeros_like(weight_G))
        return -weight_G[index_N] * excess_N

    def _best_length(self, length_N: Tensor, right_N: Tensor, index_N: Tensor, num_groups: int) -> Tensor:
        everyone_N = torch.ones_like(right_N)
        low_G = groups.masked_min(length_N, everyone_N, index_N, num_groups)
        high_G = groups.masked_max(length_N, everyone_N, index_N, num_groups)
        mean_G = groups.masked_mean(length_N, everyone_N, index_N, num_groups)
        mean_right_G = groups.masked_mean(length_N, right_N, index_N, num_groups)
        variance_G = groups.masked_variance(length_N, everyone_N, index_N, num_groups)
        variance_right_G = groups.masked_variance(length_N, right_N, index_N, num_groups)
        difference_G = variance_right_G - variance_G
        equal_G = difference_G.abs() < self.eps
        safe_G = torch.where(equal_G, torch.ones_like(difference_G), difference_G)
        balance_G = (variance_right_G * mean_G - variance_G * mean_right_G) / safe_G
        balance_G = torch.maximum(torch.minimum(balance_G, high_G), low_G)
        best_G = torch.where(difference_G < 0, balance_G, low_G)
        return torch.where(equal_G & (mean_right_G < mean_G), high_G, torch.where(equal_G, low_G, best_G))
