"""NeMo-RL's reasoning length: a full reward up to one length, none from another on. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from verl_care.shaping.base import Properties, ShapingBatch, register_rule
from verl_care.shaping.length_rule import LengthRule, require

FORMS = ("gated", "additive")


@register_rule
@dataclass(frozen=True, kw_only=True)
class ReasoningLengthRule(LengthRule):
    """R = 1 up to ``free_length``, falling linearly to 0 at ``max_length``.

    ``gated``: r' = accuracy * (1 - w * (1 - R)). ``additive``: bonus = w * R for every answer. Length is that of the
    whole response; NeMo-RL counts the tokens before the end of thinking.
    """

    name: ClassVar[str] = "reasoning_length"
    source: ClassVar[str] = "NVIDIA-NeMo/RL algorithms/reward_functions.py (#3769), video recipe"
    properties: ClassVar[Properties] = Properties(
        ranks_wrong_by_length=False, signal_when_all_right=True, right_below_wrong=False
    )

    free_length: float = 1024.0
    """tau_1 in tokens (video recipe; the code's default is 4096)."""
    max_length: float = 4096.0
    """tau_2 in tokens (video recipe; the code's default is 13000)."""
    weight: float = 0.05
    """w (video recipe; the code's default is 0.1)."""
    form: str = "gated"
    """``gated`` (video recipe) or ``additive`` (the code's default)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.free_length < self.max_length, "free_length", self.free_length, "a number in [0, max_length)")
        require(0 <= self.weight <= 1, "weight", self.weight, "a number in [0, 1]")
        require(self.form in FORMS, "form", self.form, f"one of {FORMS}")

    def compute_bonus(self, batch: ShapingBatch, state: Any) -> Tensor:
        value_N = ((self.max_length - batch.length) / (self.max_length - self.free_length)).clamp(0, 1)
        if self.form == "additive":
            return self.weight * value_N
        return -self.weight * (1 - value_N) * batch.accuracy
