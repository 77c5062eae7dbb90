"""LASER-DE: LASER-D that also pays for long wrong answers, to keep exploring. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from verl_care.shaping.base import Properties, ShapingBatch, register_rule
from verl_care.shaping.laser_d import LaserState, _DynamicLaser
from verl_care.shaping.length_rule import extra_column


@register_rule
@dataclass(frozen=True, kw_only=True)
class LaserDERule(_DynamicLaser):
    """bonus = alpha if right and l <= L_T, or wrong, l > L_T and not repetitive; L_T as in LASER-D.

    ``extra.repetitive`` (0 or 1) marks responses that an n-gram detector caught; without it none is.
    """

    name: ClassVar[str] = "laser_de"
    source: ClassVar[str] = "arXiv 2505.15612; hkust-nlp/Laser length_penalty.py larse-de"
    properties: ClassVar[Properties] = Properties(
        ranks_wrong_by_length=True, signal_when_all_right=True, right_below_wrong=False
    )

    @property
    def wanted_extra(self) -> Mapping[str, float | None]:
        return {"repetitive": 0.0}

    def compute_bonus(self, batch: ShapingBatch, state: LaserState) -> Tensor:
        within_N = self._within_target(batch, state)
        explores_N = ~batch.correct & ~within_N & (extra_column(batch, "repetitive", 0.0) == 0)
        return self.alpha * ((batch.correct & within_N) | explores_N)
