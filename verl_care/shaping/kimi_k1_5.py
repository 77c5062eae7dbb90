"""Kimi k1.5: shorter than the middle of the group earns, longer pays; wrong answers never earn. Pure."""

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
class KimiRule(LengthRule):
    """bonus = w * t if right, w * min(0, t) if wrong; t = 0.5 - (l - min l) / (max l - min l) over the group.

    Equal lengths give 0.
    """

    name: ClassVar[str] = "kimi_k1_5"
    source: ClassVar[str] = (
        "arXiv 2501.12599, long2short length penalty; w = 1 in NVlabs/GDPO open-r1 rewards.py, 0.4 in hkust-nlp/Laser"
    )
    properties: ClassVar[Properties] = Properties(
        ranks_wrong_by_length=True, signal_when_all_right=True, right_below_wrong=False
    )

    weight: float = 1.0
    """w; the paper leaves it open."""
    warmup_steps: int = 0
    """Steps without the penalty; the paper begins without it and switches it on for the rest of the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.weight >= 0, "weight", self.weight, "a number >= 0")
        require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "an integer >= 0")

    def compute_bonus(self, batch: ShapingBatch, state: Any) -> Tensor:
        if batch.step < self.warmup_steps:
            return torch.zeros_like(batch.length)
        low_N = groups.group_min(batch.length, batch.group)
        spread_N = groups.group_max(batch.length, batch.group) - low_N
        term_N = 0.5 - (batch.length - low_N) / spread_N.clamp(min=1e-6)
        term_N = torch.where(spread_N > 0, term_N, torch.zeros_like(term_N))
        return self.weight * torch.where(batch.correct, term_N, term_N.clamp(max=0))
