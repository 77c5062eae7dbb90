"""A-DLP: a token price that rises while accuracy is above its reference and falls while it is below. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from verl_care.shaping.base import Properties, ShapingBatch, register_rule
from verl_care.shaping.length_rule import LengthRule, require


@dataclass(frozen=True)
class ADlpState:
    """Price of a token."""

    price: float

    def to_dict(self) -> dict[str, Any]:
        return {"price": self.price}


@register_rule
@dataclass(frozen=True, kw_only=True)
class ADlpRule(LengthRule):
    """bonus = -price * l; then price <- max(0, price + rate * (batch accuracy - reference accuracy))."""

    name: ClassVar[str] = "a_dlp"
    source: ClassVar[str] = "arXiv 2505.18298; JinyanSu1/A-DLP verl/trainer/main_ppo.py, ppo/ray_trainer.py"
    properties: ClassVar[Properties] = Properties(
        ranks_wrong_by_length=True, signal_when_all_right=True, right_below_wrong=True
    )

    initial_price: float = 1e-3
    """Price of a token before the first update (launch script; 0.1 in the YAML)."""
    rate: float = 1e-3
    """How fast the price follows accuracy (launch script; 0.01 in the YAML)."""
    reference_accuracy: float = 0.62
    """Accuracy that holds the price (launch script; 0.6 in the YAML)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.initial_price >= 0, "initial_price", self.initial_price, "a number >= 0")
        require(self.rate >= 0, "rate", self.rate, "a number >= 0")
        require(0 <= self.reference_accuracy <= 1, "reference_accuracy", self.reference_accuracy, "a number in [0, 1]")

    def initial_state(self) -> ADlpState:
        return ADlpState(self.initial_price)

    def state_from_dict(self, data: Mapping[str, Any]) -> ADlpState:
        try:
            price = float(data["price"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"no state of a_dlp: {error!r}; found {sorted(data)}") from None
        require(math.isfinite(price) and price >= 0, "price", price, "a finite number >= 0")
        return ADlpState(price)

    def compute_bonus(self, batch: ShapingBatch, state: ADlpState) -> Tensor:
        return -state.price * batch.length

    def update_state(self, batch: ShapingBatch, state: ADlpState) -> ADlpState:
        accuracy = float(batch.correct.to(torch.float64).mean())
        return ADlpState(max(0.0, state.price + self.rate * (accuracy - self.reference_accuracy)))

    def state_metrics(self, state: ADlpState) -> dict[str, float]:
        return {"care/rule/token_price": state.price}
