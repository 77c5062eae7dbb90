"""ALP: tokens cost more the more often the prompt is solved. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from verl_care.shaping import groups
from verl_care.shaping.base import Properties, ShapingBatch, register_rule
from verl_care.shaping.length_rule import LengthRule, pass_rate, require


@register_rule
@dataclass(frozen=True, kw_only=True)
class AlpRule(LengthRule):
    """bonus = -beta * max(p, 1 / K) * l; p is the share of right answers in the group, K its size."""

    name: ClassVar[str] = "alp"
    source: ClassVar[str] = "arXiv 2506.05256 (formula); the cost of a token has no confirmed published value"
    properties: ClassVar[Properties] = Properties(
        ranks_wrong_by_length=True, signal_when_all_right=True, right_below_wrong=True
    )

    beta: float
    """Cost of a token of a prompt that is always solved: the paper's beta over its normaliser N. Required: the paper's
    beta is quoted as 1e-7, readings of N differ. About 1 / (20 * typical length) costs a right answer 5 %."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beta >= 0, "beta", self.beta, "a number >= 0")

    def compute_bonus(self, batch: ShapingBatch, state: Any) -> Tensor:
        index_N, num_groups = groups.index_groups(batch.group)
        least_G = 1 / groups.count(index_N, num_groups).to(batch.length.dtype)
        rate_G = torch.maximum(pass_rate(batch, index_N, num_groups), least_G)
        return -self.beta * rate_G[index_N] * batch.length
