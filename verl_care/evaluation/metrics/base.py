"""What a benchmark's metric is: how an answer is scored, and how scores become the benchmark's figure. Pure.

Every answer is read in several ways, side by side:

- ``strict``: what the answer tags hold, and nothing beside it, as the papers of this family score (the whole response
  where there are no tags). The headline.
- ``lenient``: what says the same in other words counts too (``B. cup`` is B).
- ``official``: as the benchmark's own scorer reads it, where it has rules of its own.

An answer that cannot be read is wrong; nothing is guessed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from verl_care.evaluation.items import Item
from verl_care.evaluation.statistics import Unit, group_mean
from verl_care.rewards.parsing import read_ground_truth
from verl_care.rewards.scorer import compute_score, score_answer

STRICT, LENIENT, OFFICIAL = "strict", "lenient", "official"
READINGS = (STRICT, LENIENT, OFFICIAL)

Values = Mapping[str, float]
"""Parts of a score by name, each in [0, 1]."""

Figures = dict[str, float]
"""Figures of a benchmark beside its headline, by name."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One answer to one item, scored."""

    item: Item
    values: Mapping[str, Values]
    """Parts of the score by reading; every item of a benchmark has the same readings."""
    readable: bool
    """Whether the lenient reading makes anything of it."""


Score = Callable[[Item, str | None], tuple[Mapping[str, Values], bool]]
"""Scores an answer (None for none): parts by reading, and whether it could be read."""


def score_by_type(item: Item, answer: str | None) -> tuple[Mapping[str, Values], bool]:
    """Parts of an answer by the problem type alone: ``score``; for grounded QA also ``answer`` and ``iou``."""
    response = "" if answer is None else f"<answer>{answer}</answer>"
    extra_info = {**item.info, "options": list(item.options)}
    found = {
        scoring: compute_score(item.benchmark, response, item.ground_truth, extra_info, scoring=scoring)
        for scoring in (STRICT, LENIENT)
    }
    values: dict[str, Values] = {}
    for reading, result in found.items():
        parts = {"score": result["acc"], "answer": result["acc_answer"], "iou": result["acc_iou"]}
        values[reading] = {name: float(value) for name, value in parts.items() if value is not None}
    return values, not found[STRICT]["unparsed"]


def score_choice(item: Item, answer: str | None) -> tuple[float, float, bool]:
    """Strict and lenient accuracy of a multiple-choice answer, and whether it names an option."""
    return score_answer(answer or "", read_ground_truth(item.ground_truth), "multiple choice", item.options)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """How a benchmark is scored."""

    label: str
    """What the headline is."""
    score: Score = score_by_type
    headline: str = "score"
    """Part of the score that the headline averages."""
    macro: Callable[[Item], tuple[str, ...]] = field(default=lambda item: ())
    """Groups that an item is averaged in, outermost first; none for the plain mean over items."""
    together: Callable[[Item], str | None] = field(default=lambda item: None)
    """Name of the group of which every item must be right for it to count; None for an item that counts by itself."""
    group_by: tuple[str, ...] = ()
    """Fields of ``extra_info`` by whose values the headline is also given."""
    figures: Callable[[Sequence[Scored], str], Figures] = field(default=lambda scored, reading: {})
    """Further figures, by reading."""
    figures_with: Callable[[Sequence[Scored], Mapping[str, Sequence[Scored]], str], Figures] = field(
        default=lambda scored, others, reading: {}
    )
    """Further figures that need other benchmarks of the same run; these by name, by reading."""

    def units(self, scored: Sequence[Scored], reading: str) -> list[Unit]:
        """What the headline averages."""
        groups: dict[str, list[Scored]] = {}
        for entry in scored:
            name = self.together(entry.item)
            groups.setdefault(entry.item.key if name is None else f"{entry.item.benchmark}//{name}", []).append(entry)
        return [
            Unit(
                name=name,
                value=min(entry.values[reading][self.headline] for entry in members),
                cluster=members[0].item.video,
                path=self.macro(members[0].item),
            )
            for name, members in groups.items()
        ]

    def tables(self, scored: Sequence[Scored], reading: str) -> dict[str, Figures]:
        """The headline by the values of each field of ``group_by``; an item with a list of values counts for each."""
        tables: dict[str, Figures] = {}
        for name in self.group_by:
            members: dict[str, list[Scored]] = {}
            for entry in scored:
                found = entry.item.info.get(name)
                for value in found if isinstance(found, list | tuple) else [found]:
                    if value is not None:
                        members.setdefault(str(value), []).append(entry)
            if members:
                tables[name] = {
                    value: group_mean(self.units(entries, reading)) for value, entries in sorted(members.items())
                }
        return tables


def mean_of(scored: Sequence[Scored], reading: str, part: str) -> float:
    """Mean of one part over the items that have it; NaN where none has."""
    values = [entry.values[reading][part] for entry in scored if part in entry.values[reading]]
    return math.fsum(values) / len(values) if values else math.nan


def share_at_least(scored: Sequence[Scored], reading: str, part: str, threshold: float) -> float:
    """Share of the items that have a part of which it is at least ``threshold``; NaN where none has."""
    values = [entry.values[reading][part] for entry in scored if part in entry.values[reading]]
    return sum(value >= threshold for value in values) / len(values) if values else math.nan


def by_id(scored: Sequence[Scored], reading: str, part: str = "score") -> dict[str, float]:
    """One part by the published id of the question; empty where the benchmark does not have this reading."""
    return {
        str(entry.item.info.get("id", entry.item.key)): entry.values[reading][part]
        for entry in scored
        if reading in entry.values
    }


def info_text(item: Item, name: str) -> str:
    """A field of the record as text, ``unknown`` without it."""
    value: Any = item.info.get(name)
    return "unknown" if value is None else str(value)
