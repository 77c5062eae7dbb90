"""PixelThink: a right answer fades beyond a budget that grows with the prompt's difficulty. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from verl_care.shaping import groups
from verl_care.shaping.base import Properties, ShapingBatch, register_rule
from verl_care.shaping.length_rule import LengthRule, extra_column, pass_rate, require

FORMS = ("piecewise", "linear")


@register_rule
@dataclass(frozen=True, kw_only=True)
class PixelThinkRule(LengthRule):
    """r' = right * clip(1 - (l - b) / fade, 0, 1), bonus = r' - right; b is the budget for a difficulty d.

    The published difficulty is a label from 1 to 10; here it comes from the group, d = 10 - 9 p with p its share of
    right answers, and length is counted in tokens instead of words.
    ``piecewise``: b = easy for d < 3.5, no penalty for 3.5 <= d < 5, b = hard + 25 u for d >= 5; u in [0, 1] is
    ``extra.uncertainty``, 0 where absent. ``linear``: b = easy + (hard - easy) * (1 - p).
    """

    name: ClassVar[str] = "pixel_think"
    source: ClassVar[str] = "arXiv 2505.23727; songw-zju/PixelThink verl/utils/reward_score/seg_pixelthink.py"
    properties: ClassVar[Properties] = Properties(
        ranks_wrong_by_length=False, signal_when_all_right=True, right_below_wrong=False
    )

    easy_budget: float = 96.0
    """Tokens that an easy prompt allows."""
    hard_budget: float = 256.0
    """Tokens that a hard prompt allows."""
    uncertainty_budget: float = 25.0
    """Tokens that an uncertainty of 1 adds for a hard prompt."""
    fade: float = 500.0
    """Tokens beyond the budget over which a right answer loses its worth."""
    medium_difficulty: float = 3.5
    """Difficulty from which a prompt is medium."""
    hard_difficulty: float = 5.0
    """Difficulty from which a prompt is hard."""
    form: str = "piecewise"
    """``piecewise`` as published, or ``linear``, without its jumps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.fade > 0, "fade", self.fade, "a number > 0")
        require(0 <= self.easy_budget <= self.hard_budget, "easy_budget", self.easy_budget, "in [0, hard_budget]")
        require(self.uncertainty_budget >= 0, "uncertainty_budget", self.uncertainty_budget, "a number >= 0")
        require(
            self.medium_difficulty <= self.hard_difficulty,
            "medium_difficulty",
            self.medium_difficulty,
            "a number <= hard_difficulty",
        )
        require(self.form in FORMS, "form", self.form, f"one of {FORMS}")

    @property
    def wanted_extra(self) -> Mapping[str, float | None]:
        return {"uncertainty": 0.0} if self.form == "piecewise" else {}

    def compute_bonus(self, batch: ShapingBatch, state: Any) -> Tensor:
        index_N, num_groups = groups.index_groups(batch.group)
        rate_N = pass_rate(batch, index_N, num_groups)[index_N]
        if self.form == "linear":
            budget_N = self.easy_budget + (self.hard_budget - self.easy_budget) * (1 - rate_N)
        else:
            difficulty_N = 10 - 9 * rate_N
            hard_N = self.hard_budget + self.uncertainty_budget * extra_column(batch, "uncertainty", 0.0)
            budget_N = torch.where(difficulty_N >= self.hard_difficulty, hard_N, torch.full_like(hard_N, torch.inf))
            easy_N = difficulty_N < self.medium_difficulty
            budget_N = torch.where(easy_N, torch.full_like(hard_N, self.easy_budget), budget_N)
        loss_N = ((batch.length - budget_N) / self.fade).clamp(0, 1)
        return -loss_N * batch.correct
