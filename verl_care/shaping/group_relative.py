"""Length against the group's right answers, in the forms of NeMo-RL and miles. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from verl_care.shaping import groups
from verl_care.shaping.base import Properties, ShapingBatch, register_rule
from verl_care.shaping.length_rule import LengthRule, extra_column, require

FORMS = ("nemo_rl", "miles")


@register_rule
@dataclass(frozen=True, kw_only=True)
class GroupRelativeRule(LengthRule):
    """Right answers only, and only where a group has two.

    ``nemo_rl``: bonus = c * (raw - mean raw), raw = 1 - (l - min) / (max - min); sums to zero. With
    ``extra.profile_length`` (0 where a record has none) only groups whose mean right length exceeds it are shaped.
    ``miles``: penalty = min(cap, slope * (l - allowed)+ / ref), allowed = factor * ref + slack, ref the 25 % quantile;
    the reward never falls below ``least_reward`` by it.
    """

    name: ClassVar[str] = "group_relative"
    source: ClassVar[str] = (
        "NVIDIA-NeMo/RL utils/length_adjustments.py (#3604, #3852); radixark/miles search-r1 length_reward.py (#1573)"
    )
    properties: ClassVar[Properties] = Properties(
        ranks_wrong_by_length=False, signal_when_all_right=True, right_below_wrong=False
    )

    form: str = "nemo_rl"
    """``nemo_rl`` or ``miles``."""
    coefficient: float = 0.1
    """nemo_rl: c."""
    quantile: float = 0.25
    """miles: quantile of the right lengths (linear interpolation) taken as ref."""
    allowed_factor: float = 1.1
    """miles: multiple of ref that is free."""
    allowed_slack: float = 16.0
    """miles: tokens that are free beyond it."""
    slope: float = 0.1
    """miles: cost of one ref of tokens too many."""
    penalty_cap: float = 0.2
    """miles: largest penalty."""
    least_reward: float = 0.8
    """miles: reward of a right answer below which the penalty does not push."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.form in FORMS, "form", self.form, f"one of {FORMS}")
        require(0 <= self.quantile <= 1, "quantile", self.quantile, "a number in [0, 1]")
        for name in ("coefficient", "allowed_factor", "allowed_slack", "slope", "penalty_cap"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "a number >= 0")

    @property
    def wanted_extra(self) -> Mapping[str, float | None]:
        return {"profile_length": 0.0} if self.form == "nemo_rl" else {}

    def compute_bonus(self, batch: ShapingBatch, state: Any) -> Tensor:
        index_N, num_groups = groups.index_groups(batch.group)
        shaped_N = batch.correct & (groups.masked_count(batch.correct, index_N, num_groups) >= 2)[index_N]
        if self.form == "nemo_rl":
            bonus_N = self._relative(batch, shaped_N, index_N, num_groups)
        else:
            bonus_N = self._beyond_quantile(batch.length, shaped_N, index_N, num_groups)
        return torch.where(shaped_N, bonus_N, torch.zeros_like(bonus_N))

    def _relative(self, batch: ShapingBatch, shaped_N: Tensor, index_N: Tensor, num_groups: int) -> Tensor:
        low_N = groups.masked_min(batch.length, shaped_N, index_N, num_groups)[index_N]
        spread_N = groups.masked_max(batch.length, shaped_N, index_N, num_groups)[index_N] - low_N
        raw_N = torch.where(shaped_N & (spread_N > 0), 1 - (batch.length - low_N) / spread_N, torch.zeros_like(low_N))
        bonus_N = self.coefficient * (raw_N - groups.masked_mean(raw_N, shaped_N, index_N, num_groups)[index_N])
        if "profile_length" in batch.extra:
            mean_N = groups.masked_mean(batch.length, shaped_N, index_N, num_groups)[index_N]
            bonus_N = bonus_N * (mean_N > extra_column(batch, "profile_length"))
        return bonus_N

    def _beyond_quantile(self, length_N: Tensor, shaped_N: Tensor, index_N: Tensor, num_groups: int) -> Tensor:
        if not bool(shaped_N.any()):
            return torch.zeros_like(length_N)
        part_S, num_parts = groups.index_groups(index_N[shaped_N])
        reference_S = groups.group_quantile(length_N[shaped_N], self.quantile, part_S, num_parts)[part_S]
        reference_S = reference_S.clamp(min=1)
        excess_S = length_N[shaped_N] - (self.allowed_factor * reference_S + self.allowed_slack)
        penalty_S = (self.slope * excess_S.clamp(min=0) / reference_S).clamp(max=self.penalty_cap)
        bonus_N = torch.zeros_like(length_N)
        bonus_N[shaped_N] = -penalty_S.clamp(max=max(0.0, 1.0 - self.least_reward))
        return bonus_N
