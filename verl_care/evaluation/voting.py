"""Which answers say the same, and which one wins a vote. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from verl_care.rewards import spans
from verl_care.rewards.multiple_choice import read_letter
from verl_care.rewards.numerical import read_number
from verl_care.rewards.parsing import CLOSE, OPEN, read_answer
from verl_care.rewards.scorer import GROUNDED_QA, GROUNDING

_DECIMALS = 2


def answer_of(text: object, tagged: bool = True) -> str | None:
    """The answer of a response.

    Args:
        text: response; anything but a string has no answer. A closing answer tag that generation stopped at may be
            missing.
        tagged: the answer stands in answer tags; False takes a text without any as a whole.

    Returns:
        The answer, stripped; None for none.
    """
    if not isinstance(text, str):
        return None
    if OPEN in text and CLOSE not in text:
        text += CLOSE
    if not tagged and OPEN not in text:
        text = f"{OPEN}{text}{CLOSE}"
    return read_answer(text)


def vote_of(answer: str | None, problem_type: str, options: Sequence[str] = ()) -> str | None:
    """What an answer votes for: answers that say the same in other words vote for the same.

    Multiple choice: the option's letter. Numbers and times: to two decimals, as numbers are scored. Other texts: their
    words without case and final full stop.

    Args:
        answer: as ``answer_of`` gives it.
        problem_type: one of the scorer's ``PROBLEM_TYPES``.
        options: the question's options, may be empty.

    Returns:
        The vote; None for an answer that is none of its type, which agrees with nothing, not even with its like.
    """
    if answer is None:
        return None
    if problem_type == "multiple choice":
        return read_letter(answer, options)
    if problem_type in ("numerical", "regression"):
        number = read_number(answer)
        # Adding zero makes -0.0 and 0.0 one vote.
        return None if number is None else repr(round(number, _DECIMALS) + 0.0)
    if problem_type == GROUNDING:
        return _span_vote(spans.find_spans(answer))
    if problem_type == GROUNDED_QA:
        text, found = spans.find_option_and_spans(answer)
        letter, times = read_letter(text, options), _span_vote(found)
        return None if letter is None or times is None else f"{letter} {times}"
    words = " ".join(answer.casefold().split()).rstrip(".").rstrip()
    return words or None


def _span_vote(found: tuple[spans.Span, ...] | None) -> str | None:
    return " ".join(f"{start:.2f}-{end:.2f}" for start, end in found) if spans.are_valid(found) and found else None


def majority(votes: Sequence[str | None]) -> tuple[str | None, int]:
    """The vote that most share, and how many do; of several the one seen first. (None, 0) where nobody votes."""
    counts = Counter(vote for vote in votes if vote is not None)
    return counts.most_common(1)[0] if counts else (None, 0)
