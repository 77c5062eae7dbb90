"""BAPO: clip bounds that widen until tokens with a positive advantage carry their share of the loss. Pure.

Source: arXiv 2510.18927; WooooDyy/BAPO ``recipe/bapo/policy_loss.py``. With r the ratio of the new to the old
probability of a token and w its weight, the positive part is P = sum of w min(r, c_high) A over A > 0 and the negative
one N = sum of w max(r, c_low) |A| over A < 0; bounds rise until P / (P + N) reaches the target.

As published N grows with c_low, because the clipped term keeps its value: raising c_low then moves the share away from
the target, and only c_high helps. What it does take away is gradient; ``contribution=gradient`` counts that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from verl_care.config import BapoConfig


def bounds_between(start: float, end: float, step: float) -> list[float]:
    """start, start + step, … up to end."""
    return [round(start + i * step, 9) for i in range(int(round((end - start) / step, 9)) + 1)]


def contributions(
    ratio: Tensor, advantage: Tensor, weight: Tensor, valid: Tensor, config: BapoConfig
) -> tuple[Tensor, Tensor]:
    """Positive part under each upper bound, negative part under each lower one; sums, to be added over ranks.

    Args:
        ratio: new over old probability of each token, any shape.
        advantage: same shape.
        weight: same shape: the probability under the rollout policy (paper), or ones (code).
        valid: places that hold tokens, same shape, bool.
        config: the bounds to try, and what counts.

    Returns:
        (upper bounds,), (lower bounds,), float64.
    """
    ratio, advantage, weight = (values[valid].double() for values in (ratio, advantage, weight))
    positive, negative = (weight * advantage.clamp(min=0)), (weight * (-advantage).clamp(min=0))
    high = ratio.new_tensor(bounds_between(config.high_start, config.high_max, config.high_step))[:, None]
    low = ratio.new_tensor(bounds_between(config.low_start, config.low_max, config.low_step))[:, None]
    if config.contribution == "surrogate":
        return (torch.minimum(ratio, high) * positive).sum(1), (torch.maximum(ratio, low) * negative).sum(1)
    return (ratio * (ratio < high) * positive).sum(1), (ratio * (ratio > low) * negative).sum(1)


@dataclass(frozen=True)
class Bounds:
    """Clip bounds of the ratio, and the share of the positive part under them."""

    low: float
    high: float
    positive_share: float
    """NaN where no token has an advantage."""


def search_bounds(positive: Tensor, negative: Tensor, config: BapoConfig) -> Bounds:
    """The first bounds on the way that reach the target share; the last ones where none do.

    Args:
        positive: positive part under each upper bound, (upper bounds,).
        negative: negative part under each lower bound, (lower bounds,).
        config: target, bounds and order: ``high_first`` (paper): c_high to its end, then c_low; ``low_first`` (code).
    """
    highs = bounds_between(config.high_start, config.high_max, config.high_step)
    lows = bounds_between(config.low_start, config.low_max, config.low_step)
    if config.order == "high_first":
        path = [(0, h) for h in range(len(highs))] + [(i, len(highs) - 1) for i in range(1, len(lows))]
    else:
        path = [(i, 0) for i in range(len(lows))] + [(len(lows) - 1, h) for h in range(1, len(highs))]

    def share(low: int, high: int) -> float:
        total = float(positive[high] + negative[low])
        return float(positive[high]) / total if total > 0 else float("nan")

    low, high = next((place for place in path if not share(*place) < config.target_share), path[-1])
    return Bounds(lows[low], highs[high], share(low, high))
