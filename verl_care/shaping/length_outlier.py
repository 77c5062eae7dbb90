"""NeMo-RL's zMAD: right answers that are outliers of length among the group's right ones pay a flat penalty. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from verl_care.shaping import groups
from verl_care.shaping.base import Properties, ShapingBatch, register_rule
from verl_care.shaping.length_rule import LengthRule, require


@register_rule
@dataclass(frozen=True, kw_only=True)
class LengthOutlierRule(LengthRule):
    """bonus = -penalty for a right answer with 0.6745 * (l - median) / MAD > threshold, else 0.

    Median and median absolute deviation are those of the group's right answers, of which there must be two; off where
    MAD / median < ``min_relative_mad``.
    """

    name: ClassVar[str] = "length_outlier"
    source: ClassVar[str] = "NVIDIA-NeMo/RL utils/length_adjustments.py (#3604, #3852)"
    properties: ClassVar[Properties] = Properties(
        ranks_wrong_by_length=False, signal_when_all_right=True, right_below_wrong=False
    )

    threshold: float = 2.0
    """Modified z-score from which an answer is an outlier (2.0 to 2.5 in the source)."""
    penalty: float = 0.1
    """Cost of being one."""
    min_relative_mad: float = 0.015
    """Spread below which lengths count as equal."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("threshold", "penalty", "min_relative_mad"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "a number >= 0")

    def compute_bonus(self, batch: ShapingBatch, state: Any) -> Tensor:
        index_N, num_groups = groups.index_groups(batch.group)
        shaped_N = batch.correct & (groups.masked_count(batch.correct, index_N, num_groups) >= 2)[index_N]
        bonus_N = torch.zeros_like(batch.length)
        if not bool(shaped_N.any()):
            return bonus_N
        length_S = batch.length[shaped_N]
        part_S, num_parts = groups.index_groups(index_N[shaped_N])
        median_S = groups.group_quantile(length_S, 0.5, part_S, num_parts)[part_S]
        mad_S = groups.group_quantile((length_S - median_S).abs(), 0.5, part_S, num_parts)[part_S]
        spread_S = (mad_S > 0) & (mad_S >= self.min_relative_mad * median_S)
        score_S = 0.6745 * (length_S - median_S) / mad_S.clamp(min=1e-6)
        bonus_N[shaped_N] = -self.penalty * (spread_S & (score_S > self.threshold)).to(bonus_N.dtype)
        return bonus_N
