"""HAPO: length against the shortest right answer that this prompt has ever had. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from verl_care.shaping import groups
from verl_care.shaping.base import Properties, ShapingBatch, register_rule
from verl_care.shaping.length_rule import LengthRule, group_keys, require

FORMS = ("cosine", "linear")


@dataclass(frozen=True)
class HapoState:
    """Shortest right length of each prompt seen so far."""

    shortest: Mapping[str, float] = field(default_factory=dict)
    """Tokens by prompt key."""

    def to_dict(self) -> dict[str, Any]:
        return {"shortest": dict(self.shortest)}


@register_rule
@dataclass(frozen=True, kw_only=True)
class HapoRule(LengthRule):
    """f = cos(pi / 2 * l / h) below 2h, else -1; bonus = w * max(floor, f) if right, w * min(0, f) if wrong.

    h is the prompt's shortest right length of earlier updates; a prompt without one gets 0. ``linear``: f = 1 - l / h
    up to h, 0 up to 1.1 h, then -(l - 1.1 h) / h, not below -1.
    """

    name: ClassVar[str] = "hapo"
    source: ClassVar[str] = "arXiv 2505.11225; HAPO utils.py, grpo_trainer.py"
    properties: ClassVar[Properties] = Properties(
        ranks_wrong_by_length=True, signal_when_all_right=True, right_below_wrong=False
    )

    weight: float = 1.0
    """w."""
    right_floor: float = -0.7
    """Lowest f of a right answer."""
    form: str = "cosine"
    """``cosine`` or ``linear``."""
    tolerance: float = 1.1
    """Linear form: multiple of h up to which a longer answer costs nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.weight >= 0, "weight", self.weight, "a number >= 0")
        require(-1 <= self.right_floor <= 0, "right_floor", self.right_floor, "a number in [-1, 0]")
        require(self.form in FORMS, "form", self.form, f"one of {FORMS}")
        require(self.tolerance >= 1, "tolerance", self.tolerance, "a number >= 1")

    def initial_state(self) -> HapoState:
        return HapoState()

    def state_from_dict(self, data: Mapping[str, Any]) -> HapoState:
        try:
            shortest = {str(key): float(length) for key, length in data["shortest"].items()}
        except (KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"no state of hapo: {error!r}; found {sorted(data)}") from None
        return HapoState(shortest)

    def compute_bonus(self, batch: ShapingBatch, state: HapoState) -> Tensor:
        index_N, num_groups = groups.index_groups(batch.group)
        history = [state.shortest.get(key, math.nan) for key in self._keys(batch, index_N, num_groups)]
        history_N = torch.tensor(history, dtype=batch.length.dtype, device=batch.length.device)[index_N].clamp(min=1)
        ratio_N = batch.length / history_N
        if self.form == "cosine":
            term_N = torch.where(ratio_N < 2, torch.cos(math.pi / 2 * ratio_N), -torch.ones_like(ratio_N))
        else:
            beyond_N = (self.tolerance - ratio_N).clamp(-1, 0)
            term_N = torch.where(ratio_N < 1, 1 - ratio_N, beyond_N)
        bonus_N = torch.where(batch.correct, term_N.clamp(min=self.right_floor), term_N.clamp(max=0))
        return self.weight * torch.where(history_N.isnan(), torch.zeros_like(bonus_N), bonus_N)

    def update_state(self, batch: ShapingBatch, state: HapoState) -> HapoState:
        index_N, num_groups = groups.index_groups(batch.group)
        shortest_G = groups.masked_min(batch.length, batch.correct, index_N, num_groups).tolist()
        shortest = dict(state.shortest)
        for key, length in zip(self._keys(batch, index_N, num_groups), shortest_G, strict=True):
            if math.isfinite(length):
                shortest[key] = min(length, shortest.get(key, math.inf))
        return HapoState(shortest)

    def state_metrics(self, state: HapoState) -> dict[str, float]:
        return {"care/rule/prompts_with_history": float(len(state.shortest))}

    def _keys(self, batch: ShapingBatch, index_N: Tensor, num_groups: int) -> list[str]:
        if not batch.prompt_key:
            raise ValueError("hapo: expected prompt keys, by which a prompt is known again; the batch has none")
        return group_keys(batch, index_N, num_groups)
