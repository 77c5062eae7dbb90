import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_care.rewards.multiple_choice import lenient, read_letter, split_option, strict

OPTIONS = ["A. cup", "B. pen", "C. A red ball"]


@pytest.mark.parametrize(
    ("pred", "gold", "accuracy"),
    [("B", "B", 1.0), (" B ", "B", 1.0), ("b", "B", 0.0), ("B.", "B", 0.0), ("B. pen", "B", 0.0), ("", "B", 0.0)],
)
def test_strict_is_equality(pred, gold, accuracy):
    assert strict(pred, gold) == accuracy


@pytest.mark.parametrize("options", [(), OPTIONS])
@pytest.mark.parametrize(
    "text",
    ["B", "b", "B.", "(B)", "(b)", "[B]", "B)", "**B**", "B. pen", "B: pen", "B) pen", "B - pen", "(B) pen", "B\npen"]
    + ["Answer: B", "Answer: (B)", "answer is B.", "The correct answer is **B**", "Option B", "B. A pen", "$B$"],
)  # fmt: skip
def test_reads_the_letter(text, options):
    assert read_letter(text, options) == "B"


@pytest.mark.parametrize("options", [(), OPTIONS])
@pytest.mark.parametrize(
    "text",
    ["", " ", "A pen", "Between", "answer", "A or B", "A, B", "(A) and (C)", "A. cup, B. pen", "A\nB", "?", "(B", "42"],
)
def test_reads_no_letter(text, options):
    assert read_letter(text, options) is None


def test_options_widen_and_narrow():
    assert read_letter("pen", OPTIONS) == "B"
    assert read_letter("B pen", OPTIONS) == "B"
    assert read_letter("A Red ball.", OPTIONS) == "C"
    assert read_letter("E", OPTIONS) is None
    assert read_letter("E") == "E"


def test_lenient():
    assert lenient("B. pen", "B", OPTIONS) == 1.0
    assert lenient("(A)", "B", OPTIONS) == 0.0
    assert lenient("A", "<A>") == 0.0
    assert lenient("B", "B. pen", OPTIONS) == 1.0
    assert lenient("no idea", "B", OPTIONS) is None


@pytest.mark.parametrize("option", ["A. cup", "A) cup", "(A) cup", "A: cup", "a. cup", " A .  cup "])
def test_split_option(option):
    assert split_option(option) == ("A", "cup")


def test_split_option_without_letter():
    assert split_option("a cup") is None


@given(st.text(max_size=40), st.sampled_from("ABC"))
def test_a_letter_read_is_one_of_the_options(text, letter):
    assert read_letter(text, OPTIONS) in {None, "A", "B", "C"}
    assert read_letter(f"({letter})", OPTIONS) == letter


@pytest.mark.timeout(10)
@pytest.mark.parametrize("text", ["answer" + " " * 500_000 + "B", "A. " * 200_000, "(" * 500_000, "*" * 500_000])
def test_hostile_text(text):
    assert read_letter(text, OPTIONS) in {None, "A", "B"}
