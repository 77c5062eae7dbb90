"""LASER: a right answer within the target length earns a fixed bonus. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from verl_care.shaping.base import Properties, ShapingBatch, register_rule
from verl_care.shaping.length_rule import LengthRule, require


@register_rule
@dataclass(frozen=True, kw_only=True)
class LaserRule(LengthRule):
    """bonus = alpha if right and l <= L_T, else 0."""

    name: ClassVar[str] = "laser"
    source: ClassVar[str] = "arXiv 2505.15612; hkust-nlp/Laser verl/utils/reward_score/length_penalty.py larse"
    properties: ClassVar[Properties] = Properties(
        ranks_wrong_by_length=False, signal_when_all_right=True, right_below_wrong=False
    )

    target_length: float
    """L_T in tokens. Required: the published scripts have 2048, 4096 and 8192."""
    alpha: float = 0.5
    """The bonus."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.target_length > 0, "target_length", self.target_length, "a number > 0")
        require(self.alpha >= 0, "alpha", self.alpha, "a number >= 0")

    def compute_bonus(self, batch: ShapingBatch, state: Any) -> Tensor:
        return self.alpha * (batch.correct & (batch.length <= self.target_length))
