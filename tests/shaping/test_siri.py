"""SIRI's schedules at the points where the paper's formulas are known."""

import pytest

from verl_care.config import SiriConfig
from verl_care.shaping.siri import length_budget


def budgets(schedule, steps, **options):
    config = SiriConfig(schedule=schedule, max_tokens=16384, min_tokens=8192, period=640, **options)
    return [length_budget(step, config, response_length=16384, total_steps=1920) for step in steps]


# Steps count from 1: phases 0, T/8, T/4, 3T/8, T/2, 5T/8, 3T/4, 7T/8 of a cycle, and the first of the next one.
EIGHTHS = [1, 81, 161, 241, 321, 401, 481, 561, 641]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", [16384, 15184, 12288, 9392, 8192, 9392, 12288, 15184, 16384]),
        ("stair", [16384, 16384, 16384, 16384, 8192, 8192, 8192, 8192, 16384]),
        ("stair_cosine", [16384, 16384, 12288, 8192, 8192, 8192, 12288, 16384, 16384]),
    ],
)
def test_schedules(schedule, expected):
    assert budgets(schedule, EIGHTHS) == expected


@pytest.mark.parametrize("schedule", ["cosine", "stair_cosine"])
def test_a_cycle_falls_and_rises_without_jumps(schedule):
    cycle = budgets(schedule, range(1, 642))
    assert cycle == cycle[::-1]
    assert all(0 <= a - b <= 90 for a, b in zip(cycle[:320], cycle[1:321], strict=True))


def test_what_is_left_open_follows_from_the_run():
    config = SiriConfig()
    values = [length_budget(step, config, response_length=768, total_steps=30) for step in range(1, 31)]
    assert max(values) == 768 and min(values) == 384
    # Three cycles.
    assert [step for step, value in enumerate(values, start=1) if value == 768] == [1, 11, 21]


def test_a_budget_never_exceeds_what_the_run_allows():
    config = SiriConfig(max_tokens=1000, min_tokens=900, period=2)
    assert {length_budget(step, config, response_length=500, total_steps=9) for step in (1, 2)} == {500}


def test_a_smallest_budget_above_the_largest_is_an_error():
    with pytest.raises(ValueError, match="min_tokens"):
        SiriConfig(max_tokens=100, min_tokens=200)
