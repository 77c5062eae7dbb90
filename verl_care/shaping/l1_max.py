"""L1 (LCPO), max form: a right answer is worth less the more of its budget it uses. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from verl_care.shaping.base import Properties, ShapingBatch, register_rule
from verl_care.shaping.length_rule import LengthRule, extra_column, require


@register_rule
@dataclass(frozen=True, kw_only=True)
class L1MaxRule(LengthRule):
    """r' = right * clip(alpha * (n* - l) + delta, 0, 1), bonus = r' - right; n* is ``extra.target_length``.

    The released code takes (clip(alpha * (n* - l), -1, 1) + 1) / 2: delta 0.5 and half the slope.
    """

    name: ClassVar[str] = "l1_max"
    source: ClassVar[str] = "arXiv 2503.04697; cmu-l3/l1 math_reward.py get_delta_score_linear_both"
    properties: ClassVar[Properties] = Properties(
        ranks_wrong_by_length=False, signal_when_all_right=True, right_below_wrong=False, needs=("target_length",)
    )

    alpha: float = 0.0003
    """Slope per token (run_l1_exact.sh); halve it for the released max form."""
    delta: float = 0.5
    """Worth of a right answer exactly at its target."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.alpha >= 0, "alpha", self.alpha, "a number >= 0")
        require(0 <= self.delta <= 1, "delta", self.delta, "a number in [0, 1]")

    def compute_bonus(self, batch: ShapingBatch, state: Any) -> Tensor:
        worth_N = self.alpha * (extra_column(batch, "target_length") - batch.length) + self.delta
        return (worth_N.clamp(0, 1) - 1) * batch.correct
