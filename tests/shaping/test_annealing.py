"""The annealed temperature at points where the published formula is known."""

import math

import pytest

from verl_care.config import AnnealingConfig
from verl_care.shaping.annealing import schedule_of, temperature_factor

CONFIG = AnnealingConfig()


def test_the_temperature_falls_from_high_to_low():
    schedule = schedule_of(1, CONFIG)
    assert schedule["decay_tokens"] == 1000.0
    at = {t: temperature_factor(t, schedule) for t in (0, 9, 10, 100, 500, 700, 741, 742, 5000, 10**9)}
    assert at[0] == at[9] == 1.0  # a template's tokens
    assert at[10] == pytest.approx(2.2 - math.exp(0.01))
    assert at[500] == pytest.approx(2.2 - math.exp(0.5))
    # 2.2 - exp(t / 1000) reaches 0.1 at 1000 ln 2.1 = 741.9.
    assert at[741] > 0.1 and at[742] == at[5000] == at[10**9] == 0.1
    falling = [temperature_factor(t, schedule) for t in range(10, 800)]
    assert falling == sorted(falling, reverse=True)


def test_later_steps_fall_more_slowly():
    assert [schedule_of(step, CONFIG)["decay_tokens"] for step in (1, 2, 101)] == [1000, 1100, 11000]
    assert schedule_of(10**6, CONFIG)["decay_tokens"] == 20 * 40000
    config = AnnealingConfig(decay=1, decay_growth=2, decay_max=4)
    assert [schedule_of(step, config)["decay_tokens"] for step in (1, 2, 3, 4)] == [20, 60, 80, 80]


@pytest.mark.parametrize(
    "wrong", [{"tau_min": 1.5}, {"tau_min": 0.0}, {"decay": 0.0}, {"decay_growth": -1}, {"warm_up": -1}]
)
def test_impossible_constants_are_errors(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AnnealingConfig(**wrong)
