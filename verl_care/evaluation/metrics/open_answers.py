"""Open answers of VideoMMMU and MMVU by rule, as MMMU scores them. Pure.

MMMU (MMMU-Benchmark/MMMU, ``eval_utils.py``; lmms-eval, ``tasks/videommmu/utils.py``): an open answer is right if the
gold text stands in it, both in lower case, or if it names a number equal to the gold one at two decimals. MMVU's own
judge is a language model (GPT-4o): scores of its open questions by rule are not comparable with published ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from verl_care.evaluation.items import Item
from verl_care.evaluation.metrics.base import LENIENT, OFFICIAL, STRICT, Values, score_by_type
from verl_care.rewards.numerical import parse_number
from verl_care.rewards.parsing import read_ground_truth

_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d{1,30})(?:\.\d{1,30})?(?:[eE][-+]?\d{1,3})?")
_MAX_CHARS = 4096


def normalise(text: str) -> str:
    """Lower case, single spaces, no full stop at the end."""
    return " ".join(text.lower().split()).rstrip(".").strip()


def holds_gold(answer: str, gold: str) -> bool:
    """Whether an answer holds the gold text as words of its own, or a number equal to the gold one at two decimals."""
    said, wanted = normalise(answer[:_MAX_CHARS]), normalise(gold)
    number = parse_number(wanted)
    if number is not None:
        found = (parse_number(match) for match in _NUMBER.findall(said))
        return any(value is not None and round(value, 2) == round(number, 2) for value in found)
    if len(wanted) == 1:
        # A single letter stands in nearly every text.
        return said == wanted
    return bool(wanted) and re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", said) is not None


def score(item: Item, answer: str | None) -> tuple[Mapping[str, Values], bool]:
    """``score`` by reading; open questions strictly by equal text, else by ``holds_gold``."""
    if item.problem_type == "multiple choice":
        values, readable = score_by_type(item, answer)
        return {**values, OFFICIAL: values[LENIENT]}, readable
    gold = read_ground_truth(item.ground_truth)
    equal = float(answer is not None and normalise(answer) == normalise(gold))
    held = float(answer is not None and holds_gold(answer, gold))
    readings = {STRICT: equal, LENIENT: max(held, equal), OFFICIAL: held}
    return {reading: {"score": value} for reading, value in readings.items()}, bool(answer)
