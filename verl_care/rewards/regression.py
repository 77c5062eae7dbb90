"""Accuracy of regression answers: one minus the relative error. Pure."""

from __future__ import annotations

from verl_care.rewards.numerical import parse_number, read_number

_EPSILON = 1e-9


def _accuracy(pred: float, gold: float) -> float:
    # Halved on both sides: the difference of two finite floats may overflow, the difference of their halves may not.
    error = (abs(pred / 2 - gold / 2) + _EPSILON / 2) / (abs(gold / 2) + _EPSILON / 2)
    return 1.0 - min(1.0, error)


def strict(pred: str, gold: str) -> float:
    """1 - min(1, (|pred - gold| + 1e-9) / (|gold| + 1e-9)), in [0, 1] (tulerfeng/Video-R1, ``grpo.py``).

    As published, no answer scores when the ground truth is 0. A text that is no number scores 0.0.
    """
    a, b = parse_number(pred), parse_number(gold)
    return 0.0 if a is None or b is None else _accuracy(a, b)


def lenient(pred: str, gold: str) -> float | None:
    """As ``strict``, with numbers as ``read_number`` reads them, and 1.0 for equal ones; None if ``pred`` is none."""
    a, b = read_number(pred), read_number(gold)
    if a is None:
        return None
    if b is None:
        return 0.0
    return 1.0 if a == b else _accuracy(a, b)
