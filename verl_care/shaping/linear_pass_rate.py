"""prime-rl's linear penalty: tokens, input and turns cost in proportion to the group's mean reward. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from verl_care.shaping import groups
from verl_care.shaping.base import Properties, ShapingBatch, register_rule
from verl_care.shaping.length_rule import LengthRule, extra_column, require


@register_rule
@dataclass(frozen=True, kw_only=True)
class LinearPassRateRule(LengthRule):
    """bonus = -mean(accuracy) * (w_out * l / max l + w_in * input / max input + w_turn * turns / max turns), by group.

    Input tokens and turns count where ``extra.input_length`` and ``extra.num_turns`` are there. prime-rl then centres
    the rewards without dividing by their deviation: ``algorithm.norm_adv_by_std_in_grpo=False``.
    """

    name: ClassVar[str] = "linear_pass_rate"
    source: ClassVar[str] = "PrimeIntellect-ai/prime-rl orchestrator/algo/grpo.py, configs/algorithm.py"
    properties: ClassVar[Properties] = Properties(
        ranks_wrong_by_length=True, signal_when_all_right=True, right_below_wrong=False
    )

    output_weight: float = 0.25
    """w_out: cost of the group's longest response."""
    input_weight: float = 0.1
    """w_in: cost of the group's longest input."""
    turn_weight: float = 0.1
    """w_turn: cost of the most turns in the group."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("output_weight", "input_weight", "turn_weight"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "a number >= 0")

    @property
    def wanted_extra(self) -> Mapping[str, float | None]:
        return {name: None for name, weight in self._other_weights if weight > 0}

    @property
    def _other_weights(self) -> tuple[tuple[str, float], ...]:
        return (("input_length", self.input_weight), ("num_turns", self.turn_weight))

    def compute_bonus(self, batch: ShapingBatch, state: Any) -> Tensor:
        cost_N = self.output_weight * self._relative(batch.length, batch)
        for name, weight in self._other_weights:
            if name in batch.extra:
                cost_N = cost_N + weight * self._relative(extra_column(batch, name), batch)
        return -groups.group_mean(batch.accuracy, batch.group) * cost_N

    def _relative(self, values_N: Tensor, batch: ShapingBatch) -> Tensor:
        return values_N / groups.group_max(values_N, batch.group).clamp(min=1)
