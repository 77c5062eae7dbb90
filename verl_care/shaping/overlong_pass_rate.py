"""PipelineRL's overlong penalty: the soft penalty near the limit, scaled by how often the prompt is solved. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from verl_care.shaping import groups
from verl_care.shaping.base import Properties, ShapingBatch, register_rule
from verl_care.shaping.length_rule import LengthRule, pass_rate, require


@register_rule
@dataclass(frozen=True, kw_only=True)
class OverlongPassRateRule(LengthRule):
    """bonus = p * factor * clamp((L_max - L_c - l) / L_c, -1, 0) for right answers, 0 for wrong ones."""

    name: ClassVar[str] = "overlong_pass_rate"
    source: ClassVar[str] = "ServiceNow/PipelineRL #126; limits of arXiv 2503.14476"
    properties: ClassVar[Properties] = Properties(
        ranks_wrong_by_length=False, signal_when_all_right=True, right_below_wrong=False
    )

    max_length: float = 20480.0
    """L_max in tokens: the limit on responses; set it to ``data.max_response_length``."""
    buffer: float = 4096.0
    """L_c in tokens: over how many tokens before L_max the penalty grows."""
    factor: float = 1.0
    """Weight of the penalty."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.buffer > 0, "buffer", self.buffer, "a number > 0")
        require(self.max_length >= self.buffer, "max_length", self.max_length, "a number >= buffer")
        require(self.factor >= 0, "factor", self.factor, "a number >= 0")

    def compute_bonus(self, batch: ShapingBatch, state: Any) -> Tensor:
        index_N, num_groups = groups.index_groups(batch.group)
        penalty_N = ((self.max_length - self.buffer - batch.length) / self.buffer).clamp(-1, 0)
        return self.factor * pass_rate(batch, index_N, num_groups)[index_N] * penalty_N * batch.correct
