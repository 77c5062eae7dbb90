import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_care.rewards.parsing import (
    MAX_ANSWER_CHARS,
    MAX_PRED_CHARS,
    find_answer,
    loggable,
    read_answer,
    read_ground_truth,
)

PUBLISHED = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL)

pieces = st.sampled_from(["<answer>", "</answer>", "<think>", "</think>", " ", "\n", "B", "<", "answer>"])
tagged = st.lists(pieces | st.text(max_size=3), max_size=12).map("".join)


@given(tagged)
def test_finds_what_the_published_pattern_finds(text):
    match = PUBLISHED.search(text)
    assert find_answer(text) == (match.group(1).strip() if match else None)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>a</think><answer>B</answer>", "B"),
        ("<answer>\n B \t</answer> and <answer>C</answer>", "B"),
        ("<answer>B", None),
        ("B</answer>", None),
        ("</answer>B<answer>", None),
        ("<answer> </answer>", None),
        ("<Answer>B</Answer>", None),
        ("<answer>a\0b</answer>", None),
        ("<answer>a\ud800b</answer>", None),
        ("", None),
        (None, None),
        (b"<answer>B</answer>", None),
    ],
)
def test_read_answer(text, answer):
    assert read_answer(text) == answer


def test_an_answer_longer_than_the_bound_is_none():
    longest = "x" * MAX_ANSWER_CHARS
    assert read_answer(f"<answer>{longest}</answer>") == longest
    assert read_answer(f"<answer>{longest}x</answer>") is None


def test_ground_truth_with_and_without_tags():
    assert read_ground_truth("<answer> A </answer>") == "A"
    assert read_ground_truth(" A\n") == "A"


def test_loggable_is_short_valid_utf8():
    assert loggable(None) == ""
    assert loggable("a\ud800b") == "a?b"
    assert len(loggable("é" * 10_000)) == MAX_PRED_CHARS
