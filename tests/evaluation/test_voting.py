import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_care.evaluation.voting import answer_of, majority, vote_of
from verl_care.rewards.scorer import PROBLEM_TYPES

OPTIONS = ["A. cup", "B. pen"]


@pytest.mark.parametrize(
    ("text", "tagged", "answer"),
    [
        ("<think>so</think><answer> B </answer>", True, "B"),
        ("<think>so</think><answer>B", True, "B"),  # stopped at the closing tag
        ("B", True, None),
        ("B", False, "B"),
        ("<answer>B</answer> or A", False, "B"),
        ("<answer></answer>", True, None),
        ("", False, None),
        (None, True, None),
    ],
)
def test_answer_of(text, tagged, answer):
    assert answer_of(text, tagged) == answer


@pytest.mark.parametrize(
    ("problem_type", "same", "others"),
    [
        ("multiple choice", ["B", "b", "(B)", "B. pen", "pen", "Answer: B"], ["A", "cup"]),
        ("numerical", ["3.5", "3.50", "about 3.5 cups", "7/2"], ["3", "35"]),
        ("numerical", ["0", "-0.0"], ["1"]),
        ("regression", ["1,000", "1000.001"], ["1001"]),
        ("free-form", ["The red ball.", "the  red\nball"], ["a red ball"]),
        ("OCR", ["NO EXIT", "no exit"], ["exit"]),
        ("temporal grounding", ["00:03 to 00:07", "3.0 - 7.0", '{"start_time": "3", "end_time": "7"}'], ["3 to 8"]),
        ("grounded QA", ["B; 3 to 7", '{"answer": "B", "span": [3, 7]}'], ["A; 3 to 7", "B; 3 to 8"]),
    ],
)
def test_answers_that_say_the_same_vote_for_the_same(problem_type, same, others):
    votes = {vote_of(answer, problem_type, OPTIONS) for answer in same}
    assert len(votes) == 1 and None not in votes
    assert votes.isdisjoint(vote_of(answer, problem_type, OPTIONS) for answer in others)


@pytest.mark.parametrize(
    ("problem_type", "answer"),
    [
        ("multiple choice", "A or B"),
        ("multiple choice", "C"),
        ("numerical", "many"),
        ("temporal grounding", "7 to 3"),
        ("temporal grounding", "soon"),
        ("grounded QA", "B"),
        ("grounded QA", "3 to 7"),
        ("free-form", " . "),
        ("OCR", None),
    ],
)
def test_an_answer_that_is_none_of_its_type_has_no_vote(problem_type, answer):
    assert vote_of(answer, problem_type, OPTIONS) is None


def test_majority():
    assert majority(["B", "A", None, "A"]) == ("A", 2)
    assert majority(["B", "A", "A", "B"]) == ("B", 2)
    assert majority([None, None, None]) == (None, 0)
    assert majority([]) == (None, 0)


@given(st.text(max_size=40), st.sampled_from(PROBLEM_TYPES))
def test_no_text_raises(text, problem_type):
    vote = vote_of(answer_of(f"<answer>{text}</answer>"), problem_type, OPTIONS)
    assert vote is None or vote
