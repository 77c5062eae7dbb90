"""TempCompass: four formats of questions, five aspects. Pure.

The rules that the official scorer tries before it asks a language model: llyx97/TempCompass, ``eval_multi-choice.py``,
``eval_yes_no.py``. What they cannot decide counts as wrong here, every caption among it; no model is asked.
"""

from __future__ import annotations

from collections.abc import Mapping

from verl_care.evaluation.items import Item
from verl_care.evaluation.metrics.base import LENIENT, OFFICIAL, STRICT, Values, score_by_type
from verl_care.rewards.multiple_choice import split_option
from verl_care.rewards.parsing import read_ground_truth


def is_right(answer: str, gold: str, gold_option: str = "") -> bool:
    """Whether the rules alone find an answer right: the gold letter or option, or ``B.`` or ``B)`` in front of a text.

    Args:
        answer: of the response.
        gold: letter, or the text of a question without options.
        gold_option: the whole option, ``B. cup``.
    """
    answer = answer.strip()
    if answer.casefold() in (gold.casefold(), gold_option.casefold().strip() or gold.casefold()):
        return True
    return len(gold) == 1 and answer[:1].casefold() == gold.casefold() and answer[1:2] in (".", ")")


def score(item: Item, answer: str | None) -> tuple[Mapping[str, Values], bool]:
    """``score`` by reading; yes or no, strictly, is the word alone, and leniently the first word of the answer."""
    gold = read_ground_truth(item.ground_truth)
    if item.problem_type != "multiple choice":
        text = answer or ""
        said = text.replace(",", " ").replace(".", " ").split()
        equal, right = float(text == gold), float(is_right(text, gold))
        first = float(bool(said) and said[0].casefold() == gold.casefold())
        readings = {STRICT: equal, LENIENT: max(equal, right, first), OFFICIAL: right}
        return {reading: {"score": value} for reading, value in readings.items()}, bool(said)
    values, readable = score_by_type(item, answer)
    chosen = [option for option in item.options if (pair := split_option(option)) and pair[0] == gold]
    official = float(answer is not None and is_right(answer, gold, chosen[0] if chosen else ""))
    return {STRICT: values[STRICT], LENIENT: values[LENIENT], OFFICIAL: {"score": official}}, readable
