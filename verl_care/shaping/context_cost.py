"""NeMo-RL's context cost: right answers fade with tokens beyond the cheapest one, less on hard prompts. Pure."""

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
class ContextCostRule(LengthRule):
    """r' = right * (d + (1 - d) * exp(-beta * (l - min l) / ref)); d: the group's failure rate, min over the right."""

    name: ClassVar[str] = "context_cost"
    source: ClassVar[str] = "NVIDIA-NeMo/RL #4225"
    properties: ClassVar[Properties] = Properties(
        ranks_wrong_by_length=False, signal_when_all_right=True, right_below_wrong=False
    )

    beta: float = 1.0
    """Strength of the decay."""
    reference: float = 200.0
    """ref in tokens: over how many extra tokens an answer fades by beta."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beta >= 0, "beta", self.beta, "a number >= 0")
        require(self.reference > 0, "reference", self.reference, "a number > 0")

    def compute_bonus(self, batch: ShapingBatch, state: Any) -> Tensor:
        index_N, num_groups = groups.index_groups(batch.group)
        shortest_N = groups.masked_min(batch.length, batch.correct, index_N, num_groups)[index_N]
        extra_N = torch.where(batch.correct, batch.length - shortest_N, torch.zeros_like(batch.length)).clamp(min=0)
        kept_N = torch.exp(-self.beta * extra_N / self.reference)
        return pass_rate(batch, index_N, num_groups)[index_N] * (kept_N - 1) * batch.correct
