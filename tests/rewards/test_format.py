import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from verl_care.rewards.format import format_reward

PUBLISHED = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)

pieces = st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", " ", "\n", "\u00a0", "\x1c", "x"])


@given(st.lists(pieces, max_size=10).map("".join))
@example("<think></think><answer></answer>")
@example("<think></think><answer>")
@example("<think></think><answer</answer>")
@example("<think>a</think>b</think><answer>c</answer>")
@example("<think></answer>")
def test_agrees_with_the_published_pattern(text):
    assert format_reward(text) == float(PUBLISHED.fullmatch(text) is not None)


@given(st.lists(pieces, max_size=8).map("".join))
def test_agrees_with_the_published_pattern_inside_a_frame(middle):
    text = f"<think>{middle}</answer>"
    assert format_reward(text) == float(PUBLISHED.fullmatch(text) is not None)


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("<think>why</think>\n\n<answer>B</answer>", 1.0),
        ("<think><think>a</think></think><answer>B</answer><answer>C</answer>", 1.0),
        (" <think>why</think><answer>B</answer>", 0.0),
        ("<think>why</think><answer>B</answer>\n", 0.0),
        ("<think>why</think> so <answer>B</answer>", 0.0),
        ("<answer>B</answer>", 0.0),
        (None, 0.0),
    ],
)
def test_examples(text, reward):
    assert format_reward(text) == reward


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "middle", ["</think>" * 100_000, "</think> " * 100_000, "</think>" + " " * 1_000_000, "<answer>" * 100_000]
)
def test_hostile_text_takes_linear_time(middle):
    assert format_reward(f"<think>{middle}x</answer>") == 0.0
