import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_care.rewards.regression import lenient, strict

finite = st.floats(allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize(
    ("pred", "gold", "accuracy"),
    [
        ("4", "4", 1.0),  # 1 - 1e-9/4
        ("3", "4", 0.75),  # 1 - 1/4
        ("5", "4", 0.75),
        ("8", "4", 0.0),
        ("100", "4", 0.0),
        ("-4", "4", 0.0),
        ("0", "0", 0.0),  # 1 - 1e-9/1e-9, as published
        ("1,000", "2000", 0.5),
        ("far", "4", 0.0),
        ("nan", "4", 0.0),
        ("1e999999", "4", 0.0),
        ("1.7e308", "-1.7e308", 0.0),
    ],
)
def test_strict(pred, gold, accuracy):
    assert strict(pred, gold) == pytest.approx(accuracy, abs=1e-8)


def test_lenient():
    assert lenient("0.0", "0") == 1.0
    assert lenient("about 3 m", "4") == pytest.approx(0.75, abs=1e-8)
    assert lenient("far", "4") is None


@given(finite, finite)
def test_in_the_unit_interval(pred, gold):
    assert 0.0 <= strict(repr(pred), repr(gold)) <= 1.0
