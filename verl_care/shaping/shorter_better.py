"""ShorterBetter: distance to the group's shortest right answer costs, right or wrong. Pure."""

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
class ShorterBetterRule(LengthRule):
    """r' = alpha * right - beta * |l - SOL|, bonus = r' - right.

    SOL is the shortest right length of the group, or the mean length if none is right. A right answer falls below a
    wrong one where beta times their distances exceeds alpha.
    """

    name: ClassVar[str] = "shorter_better"
    source: ClassVar[str] = "arXiv 2504.21370; JingyangYi/ShorterBetter reward_manager/naive.py sb_compute_score"
    properties: ClassVar[Properties] = Properties(
        ranks_wrong_by_length=True, signal_when_all_right=True, right_below_wrong=True
    )

    alpha: float = 1.0
    """Worth of a right answer; the paper reports 1 and 2, the released code has 2."""
    beta: float = 0.001
    """Cost of a token of distance (naive.py)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.alpha >= 0, "alpha", self.alpha, "a number >= 0")
        require(self.beta >= 0, "beta", self.beta, "a number >= 0")

    def compute_bonus(self, batch: ShapingBatch, state: Any) -> Tensor:
        index_N, num_groups = groups.index_groups(batch.group)
        shortest_G = groups.masked_min(batch.length, batch.correct, index_N, num_groups)
        mean_G = groups.mean(batch.length, index_N, num_groups)
        optimal_G = torch.where(shortest_G.isinf(), mean_G, shortest_G)
        return (self.alpha - 1) * batch.correct - self.beta * (batch.length - optimal_G[index_N]).abs()
