"""Temporal contrast by hand."""

import math

import pytest
import torch

from verl_care.config import ContrastConfig
from verl_care.shaping import get_rule
from verl_care.shaping.base import ShapingBatch
from verl_care.shaping.contrast import ContrastedRule, compute_contrast_bonus

NAN = math.nan


def test_bonus_goes_to_correct_responses_of_groups_that_pass():
    accuracy = torch.tensor([1.0, 0.0, 0.6, 1.0, 0.0, 0.05])
    shuffled = torch.tensor([1.0, NAN, NAN, 1.0, 1.0, NAN])
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    # Group 0: mean 1.6 / 3 = .533 against .8 * 1; group 1: 1.05 / 3 = .35 against .8. Neither passes.
    bonus, passes = compute_contrast_bonus(accuracy, shuffled, group)
    assert not passes.any() and not bonus.any()
    # Factor .5: .533 >= .5 passes, .35 does not; the wrong response of group 0 gets nothing.
    bonus, passes = compute_contrast_bonus(accuracy, shuffled, group, ContrastConfig(factor=0.5))
    assert passes.tolist() == [True] * 3 + [False] * 3
    torch.testing.assert_close(bonus, torch.tensor([0.3, 0.0, 0.3, 0.0, 0.0, 0.0]))


def test_equal_accuracies_pass_unless_a_margin_is_asked_for():
    accuracy, shuffled, group = torch.tensor([1.0, 1.0]), torch.tensor([1.0, NAN]), torch.tensor([4, 4])
    assert compute_contrast_bonus(accuracy, shuffled, group)[1].all()
    assert not compute_contrast_bonus(accuracy, shuffled, group, ContrastConfig(factor=1.0, margin=0.01))[1].any()


def test_a_group_without_shuffled_responses_earns_nothing():
    accuracy, shuffled = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([NAN, NAN, 0.0])
    bonus, passes = compute_contrast_bonus(accuracy, shuffled, torch.tensor([0, 0, 1]))
    assert passes.tolist() == [False, False, True]
    assert bonus.tolist() == pytest.approx([0.0, 0.0, 0.3])


def _batch(shuffled):
    return ShapingBatch(
        score=torch.tensor([2.0, 1.0]),
        accuracy=torch.tensor([1.0, 0.0]),
        correct=torch.tensor([True, False]),
        length=torch.tensor([100.0, 50.0]),
        group=torch.tensor([0, 0]),
        extra={"shuffled_accuracy": torch.tensor(shuffled)},
    )


def test_contrast_adds_to_the_rule_and_vanishes_for_images():
    care = get_rule("care")
    alone, _ = care(_batch([NAN, NAN]))
    without, _ = ContrastedRule(care, ContrastConfig())(_batch([NAN, NAN]))
    assert torch.equal(without.bonus, alone.bonus)
    shaped, _ = ContrastedRule(care, ContrastConfig())(_batch([0.0, NAN]))
    torch.testing.assert_close(shaped.bonus - alone.bonus, torch.tensor([0.3, 0.0]))
    assert shaped.metrics["care/temporal/pass_share"] == 1.0
