"""Temporal contrast by hand."""

import math

import pytest
import torch

from verl_care.config import ContrastConfig
from verl_care.shaping import get_rule
from verl_care.shaping.base import ShapingBatch
from verl_care.shaping.contrast import ContrastedRule, compute_contrast_bonus, group_accuracies

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


def _groups(ordered, shuffled):
    """One batch of groups, given by their accuracies on ordered and on shuffled frames."""
    rows = [
        (accuracy, answers[i] if i < len(answers) else NAN, group)
        for group, (accuracies, answers) in enumerate(zip(ordered, shuffled, strict=True))
        for i, accuracy in enumerate(accuracies)
    ]
    accuracy, shuffled_accuracy, group = (list(column) for column in zip(*rows, strict=True))
    return ShapingBatch(
        score=torch.tensor(accuracy),
        accuracy=torch.tensor(accuracy),
        correct=torch.tensor(accuracy) > 0.1,
        length=torch.full((len(rows),), 50.0),
        group=torch.tensor(group),
        extra={"shuffled_accuracy": torch.tensor(shuffled_accuracy)},
    )


# By hand, factor 0.8: better (passes), equal (passes, vacuous), worse within the factor (0.75 >= 0.8 * 0.9; vacuous),
# worse (fails), both never right (0 >= 0 passes, vacuous), an image (no part in the shares).
ORDERED = [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]
SHUFFLED = [[0, 0], [1, 0], [0.9, 0.9], [1, 1], [0, 0], []]


def test_passes_that_ordered_frames_did_not_earn_are_counted():
    batch = _groups([[float(a) for a in row] for row in ORDERED], [[float(a) for a in row] for row in SHUFFLED])
    shaped, _ = ContrastedRule(get_rule("t_grpo"), ContrastConfig())(batch)
    assert shaped.metrics["care/temporal/pass_share"] == pytest.approx(4 / 5)
    assert shaped.metrics["care/temporal/vacuous_share"] == pytest.approx(3 / 5)
    assert shaped.metrics["care/temporal/acc_ordered"] == pytest.approx((2 + 2 + 3 + 1 + 0) / 20)
    assert shaped.metrics["care/temporal/acc_shuffled"] == pytest.approx((0 + 1 + 1.8 + 2 + 0) / 10)
    # Only right answers of groups that pass earn: 2, 2, 3, none, none, none.
    earned = [0.3] * 2 + [0] * 2 + [0.3] * 2 + [0] * 2 + [0.3] * 3 + [0] * 13
    torch.testing.assert_close(shaped.bonus, torch.tensor(earned))


def test_a_margin_takes_the_vacuous_passes_out():
    batch = _groups([[float(a) for a in row] for row in ORDERED], [[float(a) for a in row] for row in SHUFFLED])
    shaped, _ = ContrastedRule(get_rule("t_grpo"), ContrastConfig(factor=1.0, margin=0.05))(batch)
    assert shaped.metrics["care/temporal/pass_share"] == pytest.approx(1 / 5)
    assert shaped.metrics["care/temporal/vacuous_share"] == 0.0


@pytest.mark.parametrize("value", [0.7, 0.1, 0.9, 1 / 3])
def test_equal_graded_accuracies_are_equal_however_many_there_are(value):
    accuracy, group = torch.full((7,), value), torch.zeros(7, dtype=torch.int64)
    shuffled = torch.tensor([value] * 3 + [NAN] * 4)
    ordered_mean, shuffled_mean = group_accuracies(accuracy, shuffled, group)
    assert torch.equal(ordered_mean, shuffled_mean)
    assert compute_contrast_bonus(accuracy, shuffled, group, ContrastConfig(factor=1.0))[1].all()


def test_a_policy_that_is_better_on_shuffled_frames_fails():
    batch = _groups([[0.0, 1.0, 0.0, 0.0]] * 3, [[1.0, 1.0]] * 3)
    shaped, _ = ContrastedRule(get_rule("t_grpo"), ContrastConfig())(batch)
    assert shaped.metrics["care/temporal/pass_share"] == 0.0 and not shaped.bonus.any()


@pytest.mark.parametrize(
    ("responses", "n", "expected"), [(None, 8, 4), (None, 5, 2), (None, 1, 0), (3, 8, 3), (0, 8, 0)]
)
def test_half_of_the_responses_by_default(responses, n, expected):
    assert ContrastConfig(responses=responses).num_responses(n) == expected
    assert ContrastConfig(responses=responses, enabled=False).num_responses(n) == 0


def test_more_responses_than_sessions_are_refused():
    with pytest.raises(ValueError, match="care.contrast.responses.*rollout.n=4.*got 5"):
        ContrastConfig(responses=5).num_responses(4)
