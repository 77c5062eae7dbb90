import concurrent.futures
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_care.rewards.numerical import lenient, parse_number, read_number, strict


@pytest.mark.parametrize(
    ("pred", "gold", "accuracy"),
    [
        ("3", "3", 1.0),
        ("3.0", "3", 0.0),  # one point, published rule
        ("3", "3.0", 0.0),
        ("3.00", "3.0", 1.0),
        ("1,234", "1234", 0.0),  # a comma counts as a point
        ("1,234", "1234.0", 1.0),
        ("0.126", "0.13", 1.0),  # both 0.13 at two decimals
        ("0.134", "0.13", 1.0),
        ("0.136", "0.13", 0.0),
        ("1e2", "100", 1.0),
        ("-3", "3", 0.0),
        ("three", "3", 0.0),
        ("inf", "3", 0.0),
        ("nan", "nan", 0.0),
        ("", "3", 0.0),
    ],
)
def test_strict(pred, gold, accuracy):
    assert strict(pred, gold) == accuracy


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3", 3.0),
        ("3.0", 3.0),
        ("3.", 3.0),
        ("1,234.5", 1234.5),
        ("$5", 5.0),
        ("50%", 50.0),
        (r"50\%", 50.0),
        ("\u22123", -3.0),
        ("3/4", 0.75),
        ("3 / -4", -0.75),
        ("about 3 cups", 3.0),
        ("5m", 5.0),
        (r"\frac{3}{4}", 0.75),
        (r"$\frac{3}{4}$", 0.75),
        (r"\(2\sqrt{2}\)", 2 * math.sqrt(2)),
        (r"3.2 \times 10^{5}", 320_000.0),
        (r"\boxed{42}", 42.0),
        (r"10^{-2}", 0.01),
    ],
)
def test_read_number(text, number):
    assert read_number(text) == pytest.approx(number, rel=1e-12)


@pytest.mark.parametrize(
    "text",
    ["", "no", "3 or 4", "10:30", "frame12", "inf", "nan", "1e999999", "3/0", r"\frac{1}{2} or \frac{1}{3}", r"2\pi r"]
    + ["9^{9^{9}}", "9^{999}", "9^99^99", r"\sum_{i=1}^{9} i", "2**9999999", r"\text{rm -rf}", "x = "],
)  # fmt: skip
def test_reads_no_number(text):
    assert read_number(text) is None


def test_lenient():
    assert lenient("3.0", "3") == 1.0
    assert lenient("about 3", "3.00") == 1.0
    assert lenient(r"\frac{1}{2}", "0.5") == 1.0
    assert lenient("4", "3") == 0.0
    assert lenient("four", "3") is None


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_written_float_is_read_back(number):
    assert parse_number(repr(number)) == number
    assert read_number(repr(number)) == number


@given(st.text(alphabet="0123456789.,-+eE/^{}()\\$% frachsqt", max_size=70))
def test_any_text_gives_a_finite_number_or_none(text):
    number = read_number(text)
    assert number is None or math.isfinite(number)


@pytest.mark.timeout(60)
def test_latex_is_read_in_threads():
    texts = [rf"\frac{{{n}}}{{4}}" for n in range(40)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read_number, texts)) == [n / 4 for n in range(40)]


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "text",
    ["1," * 8_000, "1/" * 8_000, "-" * 16_000, "9" * 16_000, "(" * 60 + r"\pi", r"\sqrt{" * 8 + "2" + "}" * 8]
    + [r"(1+\sqrt{2}+\sqrt{3}+\sqrt{5})^{99}", r"\sqrt{99999999999999999999999999999999999989}", "\\" * 1_000],
)  # fmt: skip
def test_hostile_text(text):
    number = read_number(text)
    assert number is None or math.isfinite(number)
