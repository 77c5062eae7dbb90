"""Cosine length reward: right answers earn less with length, wrong ones lose less. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from verl_care.shaping.base import Properties, ShapingBatch, register_rule
from verl_care.shaping.length_rule import LengthRule, require


@register_rule
@dataclass(frozen=True, kw_only=True)
class CosineRule(LengthRule):
    """bonus = end + (start - end) * (1 + cos(pi * l / L_max)) / 2, with start and end of right or of wrong answers."""

    name: ClassVar[str] = "cosine"
    source: ClassVar[str] = "arXiv 2502.03373; ms-swift rewards/orm.py; trl rewards/accuracy_rewards.py"
    properties: ClassVar[Properties] = Properties(
        ranks_wrong_by_length=True, signal_when_all_right=True, right_below_wrong=False
    )

    max_length: float
    """L_max in tokens. Required: the limit on responses, ``data.max_response_length``."""
    right_start: float = 1.0
    """Right answer of no length."""
    right_end: float = 0.5
    """Right answer at the limit."""
    wrong_start: float = -0.5
    """Wrong answer of no length (ms-swift; TRL: -1.0)."""
    wrong_end: float = 0.0
    """Wrong answer at the limit (ms-swift; TRL: -0.5)."""
    clamp: bool = True
    """The value stays at its end beyond L_max (TRL); False lets the curve turn back (ms-swift)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.max_length > 0, "max_length", self.max_length, "a number > 0")

    def compute_bonus(self, batch: ShapingBatch, state: Any) -> Tensor:
        share_N = batch.length / self.max_length
        fall_N = (1 + torch.cos(math.pi * (share_N.clamp(max=1) if self.clamp else share_N))) / 2
        right_N = self.right_end + (self.right_start - self.right_end) * fall_N
        wrong_N = self.wrong_end + (self.wrong_start - self.wrong_end) * fall_N
        return torch.where(batch.correct, right_N, wrong_N)
