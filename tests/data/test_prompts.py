import pytest

from verl_care.data.prompts import STYLES, ask_when, build_prompt
from verl_care.rewards.format import format_reward
from verl_care.rewards.scorer import PROBLEM_TYPES


def test_video_r1_joins_question_and_options_as_published():
    system, user = build_prompt("video_r1", "What?", "multiple choice", ["A. a", "B. {b}"])
    assert system is None
    assert user.startswith("What?Options:\nA. a\nB. {b}\n\nPlease think about this question as if you were a human")
    assert user.endswith("(e.g., A, B, C, D, etc.) within the <answer> </answer> tags.")
    assert build_prompt("video_r1", "What?", "regression")[1].endswith(
        "(e.g., 42 or 3.14) within the <answer> </answer> tags."
    )


def test_video_rts_puts_the_conversation_in_front():
    _, user = build_prompt("video_rts", "What?", "multiple choice", ["A. a", "B. b"])
    assert "<answer> answer here </answer>What?\nA. a\nB. b\n\n Please provide only the single" in user


def test_temporal_rlt_has_a_system_turn():
    system, user = build_prompt("temporal_rlt", ask_when("he sits"), "temporal grounding")
    assert system.startswith("You FIRST think about the reasoning process as an internal monologue")
    assert user.startswith('Give the query: "he sits", when does the described content occur in the video?.\n')


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
def test_every_style_words_every_type_and_asks_for_tags(style, problem_type):
    system, user = build_prompt(style, "Q", problem_type, ["A. a", "B. b"], preamble="Look.\n")
    text = f"{system}{user}"
    assert "Look.\nQ" in user and "<answer>" in text and "<think>" in text
    # No placeholder of media, and nothing that an answer could copy and be paid for.
    assert "<video>" not in text and not format_reward(text)


def test_an_unknown_style_is_refused():
    with pytest.raises(ValueError, match="prompt: expected video_r1"):
        build_prompt("plain", "Q", "OCR")
