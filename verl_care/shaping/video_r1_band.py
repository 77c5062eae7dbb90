"""Video-R1's length bonus: right answers of a fixed band of lengths earn. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from verl_care.shaping import groups
from verl_care.shaping.base import Properties, ShapingBatch, register_rule
from verl_care.shaping.length_rule import LengthRule, require


@register_rule
@dataclass(frozen=True, kw_only=True)
class VideoR1BandRule(LengthRule):
    """bonus = 0.2 if right, 320 <= l <= 512 and another answer of the group is right too."""

    name: ClassVar[str] = "video_r1_band"
    source: ClassVar[str] = "arXiv 2503.21776; Video-R1 src/r1-v/src/open_r1/trainer/grpo_trainer.py"
    properties: ClassVar[Properties] = Properties(
        ranks_wrong_by_length=False, signal_when_all_right=True, right_below_wrong=False
    )

    bonus: float = 0.2
    """Worth of the band."""
    min_length: float = 320.0
    """First token count of the band."""
    max_length: float = 512.0
    """Last token count of the band."""
    min_right: int = 2
    """Right answers that a group must have."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.bonus >= 0, "bonus", self.bonus, "a number >= 0")
        require(0 <= self.min_length <= self.max_length, "min_length", self.min_length, "a number in [0, max_length]")
        require(self.min_right >= 1, "min_right", self.min_right, "an integer >= 1")

    def compute_bonus(self, batch: ShapingBatch, state: Any) -> Tensor:
        index_N, num_groups = groups.index_groups(batch.group)
        enough_N = (groups.masked_count(batch.correct, index_N, num_groups) >= self.min_right)[index_N]
        in_band_N = (batch.length >= self.min_length) & (batch.length <= self.max_length)
        return self.bonus * (batch.correct & in_band_N & enough_N)
