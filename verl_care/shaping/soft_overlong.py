"""DAPO's soft overlong punishment: a linear penalty over the last tokens before the limit. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from verl_care.shaping.base import Properties, ShapingBatch, register_rule
from verl_care.shaping.length_rule import LengthRule, require


@register_rule
@dataclass(frozen=True, kw_only=True)
class SoftOverlongRule(LengthRule):
    """bonus = factor * clamp((L_max - L_c - l) / L_c, -1, 0), right or wrong."""

    name: ClassVar[str] = "soft_overlong"
    source: ClassVar[str] = "arXiv 2503.14476 eq. 13; trl rewards/other_rewards.py; verl reward_manager/dapo.py"
    properties: ClassVar[Properties] = Properties(
        ranks_wrong_by_length=True, signal_when_all_right=True, right_below_wrong=False
    )

    max_length: float = 20480.0
    """L_max in tokens: the limit on responses; set it to ``data.max_response_length``."""
    buffer: float = 4096.0
    """L_c in tokens: over how many tokens before L_max the penalty grows."""
    factor: float = 1.0
    """Weight of the penalty."""
    floor: bool = True
    """The penalty stays at -factor beyond L_max (paper, TRL); False lets it grow (verl, ms-swift, NeMo-RL, AReaL)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.buffer > 0, "buffer", self.buffer, "a number > 0")
        require(self.max_length >= self.buffer, "max_length", self.max_length, "a number >= buffer")
        require(self.factor >= 0, "factor", self.factor, "a number >= 0")

    def compute_bonus(self, batch: ShapingBatch, state: Any) -> Tensor:
        penalty_N = (self.max_length - self.buffer - batch.length) / self.buffer
        return self.factor * penalty_N.clamp(min=-1.0 if self.floor else None, max=0.0)
