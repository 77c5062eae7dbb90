"""AdaptThink: not thinking earns a little, as long as the prompt does not need it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from verl_care.shaping.base import Properties, ShapingBatch, register_rule
from verl_care.shaping.length_rule import LengthRule, extra_column, require


@register_rule
@dataclass(frozen=True, kw_only=True)
class AdaptThinkRule(LengthRule):
    """bonus = delta * no_think - A_ref; no rule of length.

    ``extra.no_think`` (0 or 1) marks responses that skip thinking, half of each group in the paper;
    ``extra.ref_accuracy`` is the reference model's accuracy on the prompt when it thinks.
    """

    name: ClassVar[str] = "adapt_think"
    source: ClassVar[str] = "arXiv 2505.13417; THU-KEG/AdaptThink src/adapt_think_reward_manager.py"
    properties: ClassVar[Properties] = Properties(
        ranks_wrong_by_length=False,
        signal_when_all_right=True,
        right_below_wrong=False,
        needs=("no_think", "ref_accuracy"),
    )

    delta: float = 0.05
    """Worth of not thinking (run_adapt_think_7b)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.delta >= 0, "delta", self.delta, "a number >= 0")

    def compute_bonus(self, batch: ShapingBatch, state: Any) -> Tensor:
        return self.delta * extra_column(batch, "no_think") - extra_column(batch, "ref_accuracy")
