"""BAPO's parts by hand, and its way through the bounds."""

import math

import pytest
import torch

from verl_care.config import BapoConfig
from verl_care.shaping.bapo import bounds_between, contributions, search_bounds

SMALL = {"low_start": 0.6, "low_max": 0.8, "low_step": 0.1, "high_start": 1.2, "high_max": 1.6, "high_step": 0.2}


def config(**options):
    return BapoConfig(**{**SMALL, **options})


def test_bounds_reach_their_end_without_rounding_past_it():
    assert bounds_between(1.2, 3.0, 0.05)[-1] == 3.0 and len(bounds_between(1.2, 3.0, 0.05)) == 37
    assert bounds_between(0.6, 0.9, 0.02)[-1] == 0.9 and len(bounds_between(0.6, 0.9, 0.02)) == 16
    assert bounds_between(0.8, 0.8, 0.1) == [0.8]


RATIO = torch.tensor([1.3, 2.0, 0.5, 0.75, 1.0, 9.0])
ADVANTAGE = torch.tensor([1.0, 2.0, -1.0, -2.0, 0.0, 5.0])
VALID = torch.tensor([True] * 5 + [False])


@pytest.mark.parametrize(
    ("contribution", "positive", "negative"),
    [
        # min(1.3, c) + 2 min(2, c) at 1.2, 1.4, 1.6; max(.5, c) + 2 max(.75, c) at .6, .7, .8
        ("surrogate", [3.6, 4.1, 4.5], [2.1, 2.2, 2.4]),
        # Within the bounds: none; 1.3; 1.3. And 2 * .75 at .6 and .7.
        ("gradient", [0.0, 1.3, 1.3], [1.5, 1.5, 0.0]),
    ],
)
def test_parts(contribution, positive, negative):
    out = contributions(RATIO, ADVANTAGE, torch.ones(6), VALID, config(contribution=contribution))
    assert out[0].tolist() == pytest.approx(positive) and out[1].tolist() == pytest.approx(negative)


def test_weights_count_tokens_by_their_probability():
    weight = torch.tensor([0.5, 0.0, 0.1, 0.0, 1.0, 1.0])
    positive, negative = contributions(RATIO, ADVANTAGE, weight, VALID, config())
    assert positive.tolist() == pytest.approx([0.6, 0.65, 0.65]) and negative.tolist() == pytest.approx(
        [0.06, 0.07, 0.08]
    )


@pytest.mark.parametrize(
    ("order", "target", "expected"),
    [
        # Shares by (low, high): (.6, 1.2) 1/2; (.6, 1.4) 2/3; (.6, 1.6) 3/4; (.7, 1.6) 6/7; (.8, 1.6) 1
        ("high_first", 0.5, (0.6, 1.2)),
        ("high_first", 0.6, (0.6, 1.4)),
        ("high_first", 0.75, (0.6, 1.6)),
        ("high_first", 0.8, (0.7, 1.6)),
        ("high_first", 0.9, (0.8, 1.6)),
        # (.6, 1.2) 1/2; (.7, 1.2) 2/3; (.8, 1.2) 1
        ("low_first", 0.6, (0.7, 1.2)),
        ("low_first", 0.9, (0.8, 1.2)),
    ],
)
def test_the_way_through_the_bounds(order, target, expected):
    positive, negative = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 0.5, 0.0])
    bounds = search_bounds(positive, negative, config(order=order, target_share=target))
    assert (bounds.low, bounds.high) == expected and bounds.positive_share >= target


def test_a_target_out_of_reach_ends_at_the_last_bounds():
    bounds = search_bounds(torch.ones(3), torch.full((3,), 9.0), config(target_share=0.5))
    assert (bounds.low, bounds.high) == (0.8, 1.6) and bounds.positive_share == pytest.approx(0.1)


def test_without_advantages_the_bounds_stay_where_they_start():
    bounds = search_bounds(torch.zeros(3), torch.zeros(3), config())
    assert (bounds.low, bounds.high) == (0.6, 1.2) and math.isnan(bounds.positive_share)


@pytest.mark.parametrize(
    "wrong", [{"low_max": 1.1}, {"high_start": 0.9}, {"target_share": 1.0}, {"high_step": 0.0}, {"order": "up"}]
)
def test_impossible_constants_are_errors(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        config(**wrong)
