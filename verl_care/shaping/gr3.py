"""GR3: rewards are divided by a factor that grows with length relative to the group's mean. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from verl_care.shaping import groups
from verl_care.shaping.base import Properties, ShapingBatch, register_rule
from verl_care.shaping.length_rule import LengthRule, require


@register_rule
@dataclass(frozen=True, kw_only=True)
class Gr3Rule(LengthRule):
    """r' = accuracy / (1 + alpha * l / mean l), bonus = r' - accuracy; the mean is that of the whole group."""

    name: ClassVar[str] = "gr3"
    source: ClassVar[str] = "arXiv 2603.10535; PrimeIntellect-ai/prime-rl #2029, #2169 (alpha 0.33)"
    properties: ClassVar[Properties] = Properties(
        ranks_wrong_by_length=False, signal_when_all_right=True, right_below_wrong=False
    )

    alpha: float = 0.33
    """Strength; the default of prime-rl."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.alpha >= 0, "alpha", self.alpha, "a number >= 0")

    def compute_bonus(self, batch: ShapingBatch, state: Any) -> Tensor:
        relative_N = batch.length / groups.group_mean(batch.length, batch.group).clamp(min=1e-6)
        return batch.accuracy * (1 / (1 + self.alpha * relative_N) - 1)
