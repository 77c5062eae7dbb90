"""VSI-Bench: accuracy of choices and mean relative accuracy of numbers, averaged over eight tasks. Pure.

Official form: lmms-eval, ``tasks/vsibench/utils.py`` (after thinking-in-space); Video-R1's pair: tulerfeng/Video-R1,
``eval_bench.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from verl_care.evaluation.items import Item
from verl_care.evaluation.metrics.base import (
    LENIENT,
    OFFICIAL,
    STRICT,
    Figures,
    Scored,
    Values,
    info_text,
    mean_of,
    score_choice,
)
from verl_care.rewards.numerical import parse_number, read_number
from verl_care.rewards.parsing import read_ground_truth

DIRECTION = "object_rel_direction"
"""The task whose three difficulties are one of the eight."""

_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_VIDEO_R1_THRESHOLDS = np.arange(0.5, 0.975, 0.05).astype(np.float32)
_VIDEO_R1_EPSILON = np.float32(1e-8)


def mean_relative_accuracy(pred: float, gold: float) -> float:
    """MRA: mean over theta of 0.50, 0.55, …, 0.95 of [|pred - gold| / gold <= 1 - theta].

    In the official arithmetic, float64: the boundary itself counts (1 for 2 has an error of 0.5, and one hit), and the
    grid has ``int((0.95 - 0.5) / 0.05 + 2)`` = 10 points. A gold that is not above 0 has no relative error: 0.0.
    """
    if gold <= 0:
        return 0.0
    return float(np.mean(abs(pred - gold) / gold <= 1 - _THRESHOLDS))


def mean_relative_accuracy_video_r1(pred: float, gold: float) -> float:
    """Video-R1's MRA: the error is |pred - gold| / (|gold| + 1e-8) and must lie below 1 - theta, in float32.

    In that precision the epsilon is lost beside any gold that occurs, so a number on the boundary is no hit.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        said, wanted = np.float32(pred), np.float32(gold)
        error = np.abs(said - wanted) / (np.abs(wanted) + _VIDEO_R1_EPSILON)
        return float(np.mean(error < 1 - _VIDEO_R1_THRESHOLDS))


def first_token(text: str) -> str:
    """What the official scorer reads: the first word, without a full stop at its end."""
    words = text.split()
    return words[0].rstrip(".").strip() if words else ""


def score(item: Item, answer: str | None) -> tuple[Mapping[str, Values], bool]:
    """``score``, and Video-R1's ``mean_acc`` or ``mean_mra``, by reading."""
    text, gold_text = answer or "", read_ground_truth(item.ground_truth)
    if item.problem_type == "multiple choice":
        strict, lenient, readable = score_choice(item, answer)
        official = float(first_token(text).casefold() == gold_text.casefold())
        choices = {STRICT: strict, LENIENT: lenient, OFFICIAL: official}
        return {reading: {"score": value, "mean_acc": value} for reading, value in choices.items()}, readable
    gold = read_number(gold_text)
    numbers = {STRICT: parse_number(text), LENIENT: read_number(text), OFFICIAL: parse_number(first_token(text))}
    values: dict[str, Values] = {}
    for reading, number in numbers.items():
        if number is None or gold is None:
            values[reading] = {"score": 0.0, "mean_mra": 0.0}
        else:
            values[reading] = {
                "score": mean_relative_accuracy(number, gold),
                "mean_mra": mean_relative_accuracy_video_r1(number, gold),
            }
    return values, numbers[LENIENT] is not None


def task_of(item: Item) -> tuple[str, ...]:
    """The task, and inside it the difficulty: directions are averaged over three of them."""
    question_type = info_text(item, "question_type")
    task = DIRECTION if question_type.startswith(DIRECTION) else question_type
    return task, question_type


def figures(scored: Sequence[Scored], reading: str) -> Figures:
    """Video-R1's pair: mean accuracy over choices and mean MRA over numbers, each over items."""
    return {f"Video-R1 {part}": mean_of(scored, reading, part) for part in ("mean_acc", "mean_mra")}
