"""O1-Pruner: length and accuracy against what a reference model needs for the same prompt. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from verl_care.shaping.base import Properties, ShapingBatch, register_rule
from verl_care.shaping.length_rule import LengthRule, extra_column, require


@register_rule
@dataclass(frozen=True, kw_only=True)
class O1PrunerRule(LengthRule):
    """bonus = clip(L_ref / l - 1 + weight * (right - A_ref), clip_low, clip_high).

    L_ref and A_ref are the prompt's mean length and accuracy under the reference model, ``extra.ref_length`` and
    ``extra.ref_accuracy``, sampled beforehand (12 a prompt in the paper). An empty response counts as one token.
    """

    name: ClassVar[str] = "o1_pruner"
    source: ClassVar[str] = "arXiv 2501.12570; StarDewXXX/O1-Pruner o1_scripts/construct_dataset.py"
    properties: ClassVar[Properties] = Properties(
        ranks_wrong_by_length=True,
        signal_when_all_right=True,
        right_below_wrong=True,
        needs=("ref_length", "ref_accuracy"),
    )

    weight: float = 5.0
    """Worth of accuracy against relative length (construct_dataset.py)."""
    clip_low: float | None = -2.0
    """Lowest bonus (construct_dataset.py); null for none."""
    clip_high: float | None = 4.0
    """Highest bonus (construct_dataset.py); null for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.weight >= 0, "weight", self.weight, "a number >= 0")
        low, high = self.clip_low, self.clip_high
        require(low is None or high is None or low <= high, "clip_low", low, "null or a number <= clip_high")

    def compute_bonus(self, batch: ShapingBatch, state: Any) -> Tensor:
        length_N = batch.length.clamp(min=1)
        accuracy_gain_N = batch.correct.to(length_N.dtype) - extra_column(batch, "ref_accuracy")
        bonus_N = extra_column(batch, "ref_length") / length_N - 1 + self.weight * accuracy_gain_N
        if self.clip_low is None and self.clip_high is None:
            return bonus_N
        return bonus_N.clamp(min=self.clip_low, max=self.clip_high)
