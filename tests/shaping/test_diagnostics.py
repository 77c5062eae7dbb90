"""Metrics of a shaped batch by hand."""

import pytest
import torch

from verl_care.shaping.base import Shaped, ShapingBatch
from verl_care.shaping.diagnostics import compute_batch_metrics, compute_shaping_metrics


def _batch(accuracy, length, group):
    accuracy = torch.tensor(accuracy)
    return ShapingBatch(
        score=accuracy + 1,
        accuracy=accuracy,
        correct=accuracy > 0.1,
        length=torch.tensor(length),
        group=torch.tensor(group),
    )


def test_kinds_of_groups_and_lengths():
    metrics = compute_batch_metrics(
        _batch([1.0, 1.0, 0.0, 0.0, 1.0, 0.0], [10.0, 20, 30, 40, 50, 60], [0, 0, 1, 1, 2, 2])
    )
    assert metrics["care/groups/all_right"] == metrics["care/groups/all_wrong"] == pytest.approx(1 / 3)
    assert metrics["care/groups/mixed"] == pytest.approx(1 / 3)
    assert metrics["care/pass_rate"] == pytest.approx(0.5)
    assert metrics["care/response_length/mean"] == 35 and metrics["care/response_length/p50"] == 35
    assert metrics["care/response_length/correct"] == pytest.approx(80 / 3)


def test_effort_moves_all_right_groups_at_full_scale_and_mixed_ones_hardly():
    # Group 0 all right: scores equal, so the advantage comes from the bonus alone: +-1 / sqrt(2).
    # Group 1 mixed: a bonus on the right answer leaves the normalised advantage at +-1 / sqrt(2).
    batch = _batch([1.0, 1.0, 1.0, 0.0], [10.0, 20, 10, 20], [0, 0, 1, 1])
    metrics = compute_shaping_metrics(batch, Shaped(bonus=torch.tensor([0.01, 0.03, 0.02, 0.0])))
    assert metrics["care/groups/effort_only"] == 0.5
    assert metrics["care/adv_delta/effort"] == pytest.approx(0.01 / (0.0002**0.5 + 1e-6) / 2, rel=1e-4)
    # Within-group spreads of the reward: +-.01 twice, +-.51 twice; of the effort: +-.01, +-.01.
    expected = (2 * 0.01**2 + 2 * 0.01 * 0.51) / (2 * 0.01**2 + 2 * 0.51**2)
    assert metrics["care/effort/share_of_variance"] == pytest.approx(expected, rel=1e-4)


def test_parts_are_told_apart():
    batch = _batch([1.0, 1.0], [10.0, 20.0], [0, 0])
    temporal, effort, plain = torch.tensor([0.3, 0.0]), torch.tensor([0.1, 0.2]), torch.tensor([0.1, 0.1])
    shaped = Shaped(bonus=temporal + effort, columns={"temporal_bonus": temporal, "bonus_without_amplifier": plain})
    metrics = compute_shaping_metrics(batch, shaped, norm_by_std=False)
    # Reward 2.4, 2.2: advantages +-.1. Without effort +-.15; without temporal -+.05; with the plain effort +-.15.
    assert metrics["care/effort/mean"] == pytest.approx(0.15)
    assert metrics["care/adv_delta/effort"] == pytest.approx(0.05, abs=1e-6)
    assert metrics["care/adv_delta/temporal"] == pytest.approx(0.15, abs=1e-6)
    assert metrics["care/adv_delta/amplifier"] == pytest.approx(0.05, abs=1e-6)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2]])
def test_a_bonus_for_all_moves_no_advantage_in_any_order(order):
    """Almost alike: float32 would make 1e-3 of it, and another number in another order."""
    effort = torch.tensor([0.090941321849823, 0.0864716589450836, 0.09500001072883606, 0.0928224444389343])[order]
    batch = _batch([1 / 3] * 4, [23.0, 19, 31, 25], [0] * 4)
    temporal = torch.full((4,), 0.3)
    shaped = Shaped(bonus=effort + temporal, columns={"temporal_bonus": temporal})
    metrics = compute_shaping_metrics(batch, shaped)
    assert metrics["care/adv_delta/temporal"] == pytest.approx(0, abs=1e-9)
    assert metrics["care/adv_delta/effort"] == pytest.approx(0.7175, abs=1e-3)


def test_no_metric_name_falls_under_another_aggregation_of_verl():
    batch = _batch([1.0, 0.0], [10.0, 20.0], [0, 0])
    names = {**compute_batch_metrics(batch), **compute_shaping_metrics(batch, Shaped(bonus=torch.tensor([0.1, 0.0])))}
    assert all(name.startswith("care/") for name in names)
    assert not [name for name in names for part in ("max", "min", "sum", "total", "timing_s/") if part in name]
