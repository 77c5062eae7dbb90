"""DIET: a token term weighted by how easy the prompt is, annealed over the steps. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from verl_care.shaping import groups
from verl_care.shaping.base import Properties, ShapingBatch, register_rule
from verl_care.shaping.length_rule import LengthRule, extra_column, group_uniform, pass_rate, require

FORMS = ("token", "target")


@register_rule
@dataclass(frozen=True, kw_only=True)
class DietRule(LengthRule):
    """bonus = w * p * anneal(step) * term for right answers, 0 for wrong ones; p is the group's share of right answers.

    ``token``: term = 0.5 - (l - min) / (max - min) over right siblings, 0 where these are equal.
    ``target``: term = -z, z the group's z-scores (population deviation) of max(l - T, 0); T is ``extra.target_length``
    or drawn for each group and step from U[scale * (e - 0.1), scale * e], e = 1 - p.
    anneal(step) = (cos(pi * step / anneal_steps) + 1) / 2, and 0 from ``anneal_steps`` on.

    The paper normalises accuracy and length terms apart, which is no part of the bonus.
    """

    name: ClassVar[str] = "diet"
    source: ClassVar[str] = "arXiv 2505.19217; DIET verl/utils/reward_score/math_select.py"
    properties: ClassVar[Properties] = Properties(
        ranks_wrong_by_length=False, signal_when_all_right=True, right_below_wrong=False
    )

    weight: float = 0.5
    """w."""
    form: str = "token"
    """``token`` or ``target``."""
    adaptive: bool = True
    """False: p counts as 1."""
    anneal_steps: int | None = 100
    """H: steps until the term has faded out; null keeps it."""
    target_scale: float = 8192.0
    """Target form: tokens that an error rate of 1 stands for."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.weight >= 0, "weight", self.weight, "a number >= 0")
        require(self.form in FORMS, "form", self.form, f"one of {FORMS}")
        require(self.anneal_steps is None or self.anneal_steps >= 1, "anneal_steps", self.anneal_steps, "null or >= 1")
        require(self.target_scale >= 0, "target_scale", self.target_scale, "a number >= 0")

    @property
    def wanted_extra(self) -> Mapping[str, float | None]:
        return {"target_length": math.nan} if self.form == "target" else {}

    def compute_bonus(self, batch: ShapingBatch, state: Any) -> Tensor:
        index_N, num_groups = groups.index_groups(batch.group)
        rate_G = pass_rate(batch, index_N, num_groups)
        if self.form == "token":
            low_N = groups.masked_min(batch.length, batch.correct, index_N, num_groups)[index_N]
            spread_N = groups.masked_max(batch.length, batch.correct, index_N, num_groups)[index_N] - low_N
            term_N = torch.where(spread_N > 0, 0.5 - (batch.length - low_N) / spread_N, torch.zeros_like(low_N))
        else:
            excess_N = (batch.length - self._target(batch, rate_G, index_N, num_groups)).clamp(min=0)
            everyone_N = torch.ones_like(batch.correct)
            std_N = groups.masked_variance(excess_N, everyone_N, index_N, num_groups).sqrt()[index_N]
            centred_N = excess_N - groups.mean(excess_N, index_N, num_groups)[index_N]
            term_N = torch.where(std_N > 0, -centred_N / std_N, torch.zeros_like(centred_N))
        weight_N = self.weight * (rate_G[index_N] if self.adaptive else 1.0) * self._anneal(batch.step)
        return torch.where(batch.correct, weight_N * term_N, torch.zeros_like(term_N))

    def _anneal(self, step: int) -> float:
        if self.anneal_steps is None:
            return 1.0
        return (math.cos(math.pi * min(step / self.anneal_steps, 1.0)) + 1) / 2

    def _target(self, batch: ShapingBatch, rate_G: Tensor, index_N: Tensor, num_groups: int) -> Tensor:
        given_N = extra_column(batch, "target_length", math.nan)
        uniform_G = group_uniform(batch, index_N, num_groups).to(rate_G.dtype)
        drawn_N = (self.target_scale * (1 - rate_G - 0.1 * (1 - uniform_G)))[index_N]
        return torch.where(given_N.isnan(), drawn_N, given_N)
