"""CG-Bench: options from the whole video and from its clue intervals alone, and where the clues are. Pure.

Official form: CG-Bench/CG-Bench, ``run/utils.py`` (``post_process``, ``calculate_intervals_iou``). ``cgbench`` is its
mode long_acc, ``cgbench_clue`` clue_acc, ``cgbench_miou`` miou. From them (CG-Bench, arXiv 2412.12075): rec@IoU, the
mean over thresholds of the share of answers that reach each; acc@IoU, the same where the option is right as well; CRR,
the clue recovery rate long_acc / clue_acc.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from verl_care.evaluation.items import Item
from verl_care.evaluation.metrics.base import (
    LENIENT,
    OFFICIAL,
    STRICT,
    Figures,
    Scored,
    Values,
    by_id,
    mean_of,
    score_by_type,
    share_at_least,
)
from verl_care.rewards import spans
from verl_care.rewards.parsing import read_ground_truth

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Of rec@IoU and acc@IoU."""
MAX_SPANS = 5
"""Later intervals of an answer do not count, as the official prompt says; the official code counts them."""
CLUE, MIOU = "cgbench_clue", "cgbench_miou"

_FENCE = re.compile(r"```json(.*?)```", re.DOTALL)
_LETTER = re.compile(r"\b[A-H]\b")
_NUMBER = re.compile(r"-?\d{1,30}\.?\d{0,30}")


def _fenced(answer: str) -> Any:
    """The ``result`` of the answer's fenced JSON; None without."""
    fence = _FENCE.search(answer)
    try:
        return json.loads(fence[1])["result"] if fence else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def official_choice(answer: str, gold: str) -> float:
    """1.0 for the fenced ``{"result": "B"}``, and for an answer in which the letter stands anywhere as a word."""
    result = _fenced(answer)
    return float(result == gold if result is not None else gold in _LETTER.findall(answer))


def score_choice(item: Item, answer: str | None) -> tuple[Mapping[str, Values], bool]:
    """``score`` of an option, by reading."""
    values, readable = score_by_type(item, answer)
    official = official_choice(answer or "", read_ground_truth(item.ground_truth))
    return {**values, OFFICIAL: {"score": official}}, readable


def official_spans(answer: str) -> list[spans.Span] | None:
    """The intervals that the official scorer reads: fenced JSON, else all numbers in pairs, None for an odd count."""
    result = _fenced(answer)
    if result is None:
        numbers = [float(number) for number in _NUMBER.findall(answer)]
        result = list(zip(numbers[::2], numbers[1::2], strict=True)) if len(numbers) % 2 == 0 else []
    try:
        found = [(float(start), float(end)) for start, end in result]
    except (ValueError, TypeError):
        return None
    return found if found and all(map(math.isfinite, (time for span in found for time in span))) else None


def score_clues(item: Item, answer: str | None) -> tuple[Mapping[str, Values], bool]:
    """``score``: IoU of all predicted intervals together with all clue intervals together, by reading.

    The official code lets a reversed interval count with a negative length; here such an answer scores nothing.
    """
    text = answer or ""
    gold = spans.read_gold_spans(read_ground_truth(item.ground_truth), item.info)
    strict, lenient = spans.read_spans(text), spans.find_spans(text)
    official = official_spans(text)
    values = {
        STRICT: spans.temporal_iou((strict or ())[:MAX_SPANS], gold),
        LENIENT: spans.temporal_iou((lenient or ())[:MAX_SPANS], gold),
        OFFICIAL: spans.temporal_iou(official or (), gold),
    }
    return {reading: {"score": value} for reading, value in values.items()}, lenient is not None


def clue_figures(scored: Sequence[Scored], reading: str) -> Figures:
    """mIoU and rec@IoU."""
    recalls = [share_at_least(scored, reading, "score", at) for at in THRESHOLDS]
    return {"mIoU": mean_of(scored, reading, "score"), "rec@IoU": fmean(recalls)}


def figures_with(scored: Sequence[Scored], others: Mapping[str, Sequence[Scored]], reading: str) -> Figures:
    """What follows from the same questions asked in the other modes: clue-acc and CRR, acc@IoU."""
    figures: Figures = {}
    whole = by_id(scored, reading)
    clue, iou = (by_id(others.get(name, ()), reading) for name in (CLUE, MIOU))
    if both := whole.keys() & clue.keys():
        long_acc, clue_acc = (fmean(found[key] for key in both) for found in (whole, clue))
        figures |= {"clue-acc": clue_acc, "CRR": long_acc / clue_acc if clue_acc else math.nan}
    if both := whole.keys() & iou.keys():
        figures["acc@IoU"] = fmean(
            fmean(whole[key] == 1 and iou[key] >= threshold for key in both) for threshold in THRESHOLDS
        )
    return figures
