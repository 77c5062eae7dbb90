"""L1 (LCPO), exact form: every token away from the prompt's target costs the same. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from verl_care.shaping.base import Properties, ShapingBatch, register_rule
from verl_care.shaping.length_rule import LengthRule, extra_column, require


@register_rule
@dataclass(frozen=True, kw_only=True)
class L1ExactRule(LengthRule):
    """bonus = -alpha * |n* - l|; n* is ``extra.target_length`` of each response, which the prompt must ask for too."""

    name: ClassVar[str] = "l1_exact"
    source: ClassVar[str] = "arXiv 2503.04697; cmu-l3/l1 math_reward.py, scripts/train/run_l1_exact.sh"
    properties: ClassVar[Properties] = Properties(
        ranks_wrong_by_length=True, signal_when_all_right=True, right_below_wrong=True, needs=("target_length",)
    )

    alpha: float = 0.0003
    """Cost of a token of distance (run_l1_exact.sh)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.alpha >= 0, "alpha", self.alpha, "a number >= 0")

    def compute_bonus(self, batch: ShapingBatch, state: Any) -> Tensor:
        return -self.alpha * (extra_column(batch, "target_length") - batch.length).abs()
