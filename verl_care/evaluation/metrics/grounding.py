"""Temporal grounding (Charades-STA, ActivityNet): mean IoU and recall at IoU 0.3, 0.5, 0.7. Pure.

Official form: lmms-eval, ``temporal_grounding_charades``; appletea233/Temporal-R1, ``eval_tvg.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from verl_care.evaluation.items import Item
from verl_care.evaluation.metrics.base import (
    LENIENT,
    OFFICIAL,
    STRICT,
    Figures,
    Scored,
    Values,
    mean_of,
    score_by_type,
    share_at_least,
)
from verl_care.rewards import spans
from verl_care.rewards.parsing import read_ground_truth

RECALLS = (0.3, 0.5, 0.7)

_TIME = r"(?:\d{1,4}:)?\d{1,5}(?::\d{2})?(?:\.\d{1,9})?"
_PAIR = re.compile(rf"({_TIME})\s{{0,3}}s?(?:econds)?\s{{0,3}}(?:-|–|to|and)\s{{0,3}}({_TIME})")


def first_span(text: str) -> spans.Span | None:
    """The span that the official scorer reads: the first ``a - b`` or ``a to b`` of a text, swapped if reversed."""
    value = spans.find_spans(text)
    if value is not None:
        start, end = value[0]
    else:
        match = _PAIR.search(text.lower())
        times = [spans.read_time(group) for group in match.groups()] if match else [None]
        if times[0] is None or times[-1] is None:
            return None
        start, end = times[0], times[-1]
    return min(start, end), max(start, end)


def hull_iou(pred: spans.Span, gold: spans.Span) -> float:
    """max(0, intersection) / hull; 0.0 for two equal points. Equals the usual IoU wherever both spans overlap."""
    hull = max(pred[1], gold[1]) - min(pred[0], gold[0])
    return max(0.0, min(pred[1], gold[1]) - max(pred[0], gold[0])) / hull if hull > 0 else 0.0


def score(item: Item, answer: str | None) -> tuple[Mapping[str, Values], bool]:
    """``score``: the IoU, by reading."""
    values, readable = score_by_type(item, answer)
    span = None if answer is None else first_span(answer)
    gold = spans.read_gold_spans(read_ground_truth(item.ground_truth), item.info)
    official = 0.0 if span is None else max(hull_iou(span, target) for target in gold)
    return {STRICT: values[STRICT], LENIENT: values[LENIENT], OFFICIAL: {"score": official}}, readable


def figures(scored: Sequence[Scored], reading: str) -> Figures:
    """Recall: share of items whose IoU is at least each threshold."""
    recalls = {f"R@1 IoU={at}": share_at_least(scored, reading, "score", at) for at in RECALLS}
    return {**recalls, "mIoU": mean_of(scored, reading, "score")}
