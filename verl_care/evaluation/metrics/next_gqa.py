"""NExT-GQA: the right option, and when it shows: Acc@GQA, Acc@QA, IoP and IoU. Pure.

Official form: doc-doc/NExT-GQA, ``code/TempGQA/eval_ground.py``.
"""

from __future__ import annotations

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
    score_choice,
    share_at_least,
)
from verl_care.rewards import spans
from verl_care.rewards.parsing import read_ground_truth
from verl_care.rewards.scorer import GROUNDED_QA, score_answer

IOP_NEEDED = 0.5
"""IoP that a right answer needs to count for Acc@GQA."""


def overlap(pred: spans.Span, gold: spans.Span, point_counts: bool = False) -> tuple[float, float]:
    """IoU and IoP of one predicted and one gold span.

    IoU = intersection / hull, IoP = intersection / length of the prediction; both at least 0.

    Args:
        pred: predicted span.
        gold: gold span, its end after its start.
        point_counts: as published, a prediction without length has an IoP of 1 inside the gold span. A model that
            answers with a point then has the best IoP there is; by default such an answer scores nothing.
    """
    if pred[0] == pred[1]:
        return 0.0, float(point_counts and gold[0] <= pred[0] <= gold[1])
    if pred[0] > pred[1]:
        return 0.0, 0.0
    shared = max(0.0, min(pred[1], gold[1]) - max(pred[0], gold[0]))
    return shared / (max(pred[1], gold[1]) - min(pred[0], gold[0])), shared / (pred[1] - pred[0])


def best_overlap(
    pred: Sequence[spans.Span] | None, gold: Sequence[spans.Span], point_counts: bool = False
) -> tuple[float, float]:
    """The largest IoU and, by itself, the largest IoP over the gold spans; of several predicted spans the first."""
    if not pred:
        return 0.0, 0.0
    pairs = [overlap(pred[0], target, point_counts) for target in gold]
    return max(iou for iou, _ in pairs), max(iop for _, iop in pairs)


def score(item: Item, answer: str | None) -> tuple[Mapping[str, Values], bool]:
    """``score`` (Acc@GQA), ``answer``, ``iou`` and ``iop`` by reading; ``answer`` alone for items without spans."""
    if item.problem_type != GROUNDED_QA:
        strict, lenient, readable = score_choice(item, answer)
        choices = {STRICT: strict, LENIENT: lenient, OFFICIAL: lenient}
        return {reading: {"score": value, "answer": value} for reading, value in choices.items()}, readable
    text = answer or ""
    option, targets = spans.read_gold_option_and_spans(read_ground_truth(item.ground_truth), item.info)
    strict_option, strict_spans = spans.read_option_and_spans(text)
    loose_option, loose_spans = spans.find_option_and_spans(text)
    strict, _, named = score_answer(strict_option, option, "multiple choice", item.options)
    _, lenient, loosely_named = score_answer(loose_option, option, "multiple choice", item.options)
    lenient = max(lenient, strict)
    loose_spans = loose_spans if strict_spans is None else strict_spans
    # Without any span the official scorer has nothing to read, and neither has this one.
    official = (lenient, *best_overlap(loose_spans, targets, point_counts=True))
    readings = {
        STRICT: (strict, *best_overlap(strict_spans, targets)),
        LENIENT: (lenient, *best_overlap(loose_spans, targets)),
        OFFICIAL: official,
    }
    values = {
        reading: {"score": float(right >= 1 and iop >= IOP_NEEDED), "answer": right, "iou": iou, "iop": iop}
        for reading, (right, iou, iop) in readings.items()
    }
    return values, named or loosely_named or loose_spans is not None


def figures(scored: Sequence[Scored], reading: str) -> Figures:
    """The official table, by its names."""
    table = {"Acc@QA": mean_of(scored, reading, "answer")}
    for part, name in (("iop", "IoP"), ("iou", "IoU")):
        table[f"m{name}"] = mean_of(scored, reading, part)
        table |= {f"{name}@{at}": share_at_least(scored, reading, part, at) for at in (0.3, 0.5)}
    return table
