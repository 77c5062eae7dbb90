"""VideoMMMU's Δknowledge: how much of what was not known before a lecture is known after it. Pure.

Video-MMMU's repository (EvolvingLMMs-Lab/VideoMMMU, ``README.md``): (after - before) / (100 % - before); after is the
accuracy on the track Adaptation, before that on the same questions with their picture alone
(``video_mmmu_question_only``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from verl_care.evaluation.metrics.base import Figures, Scored, by_id

QUESTION_ONLY = "video_mmmu_question_only"


def delta_knowledge(after: float, before: float) -> float:
    """Share of the unknown that was learned; negative for what was unlearned, NaN where nothing was left to learn.

    Args:
        after: accuracy with the lecture, [0, 1].
        before: accuracy without, [0, 1].
    """
    return (after - before) / (1.0 - before) if before < 1.0 else math.nan


def figures_with(scored: Sequence[Scored], others: Mapping[str, Sequence[Scored]], reading: str) -> Figures:
    """Δknowledge over the questions that were asked both ways; nothing where none was."""
    after, before = by_id(scored, reading), by_id(others.get(QUESTION_ONLY, ()), reading)
    both = after.keys() & before.keys()
    if not both:
        return {}
    return {"Δknowledge": delta_knowledge(fmean(after[key] for key in both), fmean(before[key] for key in both))}
