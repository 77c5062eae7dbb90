"""VisionThink: the high-resolution image costs, and so does guessing where few direct answers are right. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from verl_care.shaping import groups
from verl_care.shaping.base import Properties, ShapingBatch, register_rule
from verl_care.shaping.length_rule import LengthRule, extra_column, require

FORMS = ("code", "paper")


@register_rule
@dataclass(frozen=True, kw_only=True)
class VisionThinkRule(LengthRule):
    """Right answers lose ``tool_penalty`` through the tool and ``direct_penalty`` without it, depending on rho.

    rho is the share of direct ones among the group's right answers; ``extra.direct`` (0 or 1) marks answers without
    the tool. ``code``: the tool always costs, a direct answer where 0 < rho < threshold. ``paper``: the tool costs only
    from the threshold on.
    """

    name: ClassVar[str] = "vision_think"
    source: ClassVar[str] = "arXiv 2507.13348; VisionThink verl/trainer/ppo/ray_trainer.py, general_qa_tool.py"
    properties: ClassVar[Properties] = Properties(
        ranks_wrong_by_length=False, signal_when_all_right=True, right_below_wrong=False, needs=("direct",)
    )

    tool_penalty: float = 0.1
    """Cost of the tool (the code multiplies by 0.9)."""
    direct_penalty: float = 0.1
    """Cost of a direct answer."""
    threshold: float = 0.2
    """theta: share of direct right answers below which a direct one counts as luck."""
    form: str = "code"
    """``code`` or ``paper``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.tool_penalty <= 1, "tool_penalty", self.tool_penalty, "a number in [0, 1]")
        require(0 <= self.direct_penalty <= 1, "direct_penalty", self.direct_penalty, "a number in [0, 1]")
        require(0 <= self.threshold <= 1, "threshold", self.threshold, "a number in [0, 1]")
        require(self.form in FORMS, "form", self.form, f"one of {FORMS}")

    def compute_bonus(self, batch: ShapingBatch, state: Any) -> Tensor:
        index_N, num_groups = groups.index_groups(batch.group)
        direct_N = extra_column(batch, "direct")
        share_N = groups.masked_mean(direct_N, batch.correct, index_N, num_groups)[index_N]
        is_direct_N = direct_N > 0
        lucky_N = is_direct_N & (share_N > 0) & (share_N < self.threshold)
        lazy_N = ~is_direct_N
        if self.form == "paper":
            lazy_N = lazy_N & (share_N >= self.threshold)
        penalty_N = self.direct_penalty * lucky_N + self.tool_penalty * lazy_N
        return torch.where(batch.correct, -penalty_N, torch.zeros_like(penalty_N))
