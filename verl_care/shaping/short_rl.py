"""Short-RL: shortness among right answers earns, as long as batch accuracy holds. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from verl_care.shaping import groups
from verl_care.shaping.base import Properties, ShapingBatch, register_rule
from verl_care.shaping.length_rule import LengthRule, require


@dataclass(frozen=True)
class ShortRLState:
    """Best batch accuracy so far."""

    best_accuracy: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return {"best_accuracy": self.best_accuracy}


@register_rule
@dataclass(frozen=True, kw_only=True)
class ShortRLRule(LengthRule):
    """Right answers: 0.5 if l <= min + tau_len, else 0.5 - (l - min) / (max - min); min and max over right siblings.

    All zero in a batch whose accuracy falls more than ``accuracy_tolerance`` below the best one so far. The term jumps
    at the edge of the tolerance, as published.
    """

    name: ClassVar[str] = "short_rl"
    source: ClassVar[str] = "arXiv 2505.12284; lblankl/Short-RL kk_shortrl.py, deepscaler/rewards/ShortRL.py"
    properties: ClassVar[Properties] = Properties(
        ranks_wrong_by_length=False, signal_when_all_right=True, right_below_wrong=False
    )

    accuracy_tolerance: float = 0.05
    """tau_acc: how far batch accuracy may fall below its best."""
    length_tolerance: float = 100.0
    """tau_len in tokens: 100 for mathematics, 200 for logic puzzles."""
    eps: float = 1e-5
    """Added to max - min."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.accuracy_tolerance >= 0, "accuracy_tolerance", self.accuracy_tolerance, "a number >= 0")
        require(self.length_tolerance >= 0, "length_tolerance", self.length_tolerance, "a number >= 0")
        require(self.eps > 0, "eps", self.eps, "a number > 0")

    def initial_state(self) -> ShortRLState:
        return ShortRLState()

    def state_from_dict(self, data: Mapping[str, Any]) -> ShortRLState:
        try:
            best = float(data["best_accuracy"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"no state of short_rl: {error!r}; found {sorted(data)}") from None
        require(0 <= best <= 1, "best_accuracy", best, "a number in [0, 1]")
        return ShortRLState(best)

    def compute_bonus(self, batch: ShapingBatch, state: ShortRLState) -> Tensor:
        if self._accuracy(batch) < state.best_accuracy - self.accuracy_tolerance:
            return torch.zeros_like(batch.length)
        index_N, num_groups = groups.index_groups(batch.group)
        shortest_N = groups.masked_min(batch.length, batch.correct, index_N, num_groups)[index_N]
        longest_N = groups.masked_max(batch.length, batch.correct, index_N, num_groups)[index_N]
        slope_N = 0.5 - (batch.length - shortest_N) / (longest_N - shortest_N + self.eps)
        within_N = batch.length <= shortest_N + self.length_tolerance
        bonus_N = torch.where(within_N, torch.full_like(slope_N, 0.5), slope_N)
        return torch.where(batch.correct, bonus_N, torch.zeros_like(bonus_N))

    def update_state(self, batch: ShapingBatch, state: ShortRLState) -> ShortRLState:
        return ShortRLState(max(state.best_accuracy, self._accuracy(batch)))

    def state_metrics(self, state: ShortRLState) -> dict[str, float]:
        return {"care/rule/best_accuracy": state.best_accuracy}

    def _accuracy(self, batch: ShapingBatch) -> float:
        return float(batch.correct.to(torch.float64).mean())
