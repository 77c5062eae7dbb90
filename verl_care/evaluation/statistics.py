"""How sure a score is: means over groups, bootstraps clustered by video, McNemar's test, spread over seeds. Pure.

Questions about one clip share its luck, so clips are drawn, not questions. Two runs are compared question by question
on the same draws of clips.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What counts once in a score: a question, or a group of questions that count together."""

    name: str
    value: float
    cluster: str
    """Its clip."""
    path: tuple[str, ...] = ()
    """Groups that it is averaged in, outermost first: the score is the mean of the outermost groups' means, and so on
    inwards. Empty: the plain mean."""


def group_mean(units: Sequence[Unit]) -> float:
    """The mean of the outermost groups' means, each the mean of its groups' means, and so on; NaN without units."""
    if not units:
        return math.nan
    layout = _Layout(units)
    return float(_mean_of_groups(layout, _values(units), np.ones((1, layout.num_clusters)))[0])


def _values(units: Sequence[Unit]) -> np.ndarray:
    return np.array([unit.value for unit in units], dtype=np.float64)


class _Layout:
    """The tree of groups over units, and the cluster of each unit."""

    def __init__(self, units: Sequence[Unit]) -> None:
        names = sorted({unit.cluster for unit in units})
        index = {name: number for number, name in enumerate(names)}
        self.cluster_U = np.array([index[unit.cluster] for unit in units], dtype=np.int64)
        self.num_clusters = len(names)
        paths = [unit.path for unit in units]
        if len({len(path) for path in paths}) > 1:
            raise ValueError("units: expected paths of one length")
        self.depth = len(paths[0]) if paths else 0
        # levels[d]: for each group of depth d + 1 its parent's place at depth d.
        self.parents: list[np.ndarray] = []
        places: list[dict[tuple[str, ...], int]] = [{(): 0}]
        for depth in range(1, self.depth + 1):
            groups = sorted({path[:depth] for path in paths})
            places.append({group: number for number, group in enumerate(groups)})
            self.parents.append(np.array([places[depth - 1][group[:-1]] for group in groups], dtype=np.int64))
        self.leaf_U = np.array([places[self.depth][path] for path in paths], dtype=np.int64)
        self.num_leaves = len(places[self.depth])


def _mean_of_groups(layout: _Layout, values_U: np.ndarray, weights_BC: np.ndarray) -> np.ndarray:
    """(B,) scores under weights of the clusters; a group without weight is left out."""
    shape = (layout.num_clusters, layout.num_leaves)
    sums_CL, counts_CL = np.zeros(shape), np.zeros(shape)
    np.add.at(sums_CL, (layout.cluster_U, layout.leaf_U), values_U)
    np.add.at(counts_CL, (layout.cluster_U, layout.leaf_U), 1)
    mean_BG, there_BG = _divide(weights_BC @ sums_CL, weights_BC @ counts_CL)
    for parents in reversed(layout.parents):
        member_GP = np.zeros((len(parents), int(parents.max()) + 1))
        member_GP[np.arange(len(parents)), parents] = 1
        mean_BG, there_BG = _divide(np.where(there_BG, mean_BG, 0.0) @ member_GP, there_BG.astype(float) @ member_GP)
    return np.where(there_BG[:, 0], mean_BG[:, 0], np.nan)


def _divide(totals: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    there = counts > 0
    return np.divide(totals, counts, out=np.zeros_like(totals), where=there), there


def draw_clusters(num_clusters: int, resamples: int, seed: int) -> np.ndarray:
    """How often each cluster is drawn in each resample, (resamples, clusters)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_clusters, np.full(num_clusters, 1 / num_clusters), size=resamples)


@dataclass(frozen=True)
class Interval:
    """A figure with the bounds of its confidence interval."""

    value: float
    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        """Whether 0 lies within the bounds: a difference is then not distinguishable from none."""
        return not (self.low > 0 or self.high < 0)

    def to_dict(self) -> dict[str, float]:
        """For JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}


def _interval(value: float, draws: np.ndarray, level: float) -> Interval:
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        return Interval(value, math.nan, math.nan)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def bootstrap(units: Sequence[Unit], *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0) -> Interval:
    """The score with its percentile interval over resampled clips; with a single clip there is none (NaN)."""
    layout, score = _Layout(units), group_mean(units)
    if layout.num_clusters < 2:
        return Interval(score, math.nan, math.nan)
    weights = draw_clusters(layout.num_clusters, resamples, seed)
    return _interval(score, _mean_of_groups(layout, _values(units), weights), level)


def paired_bootstrap(
    units: Sequence[Unit],
    baseline: Sequence[Unit],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """The difference of two runs' scores, ``units`` minus ``baseline``, over the same resampled clips.

    Args:
        units: of one run.
        baseline: of the other, the same names in any order.
        resamples: draws.
        level: of the interval.
        seed: of the draws.

    Raises:
        ValueError: the runs do not have the same units.
    """
    by_name = {unit.name: unit for unit in baseline}
    if set(by_name) != {unit.name for unit in units} or len(baseline) != len(units):
        raise ValueError("units: both runs must have the same ones")
    others = [by_name[unit.name] for unit in units]
    layout = _Layout(units)
    difference = group_mean(units) - group_mean(others)
    if layout.num_clusters < 2:
        return Interval(difference, math.nan, math.nan)
    weights = draw_clusters(layout.num_clusters, resamples, seed)
    # Both runs have the same groups and clusters, whatever their values are.
    draws = _mean_of_groups(layout, _values(units), weights) - _mean_of_groups(layout, _values(others), weights)
    return _interval(difference, draws, level)


def bootstrap_reduction(
    tokens: Mapping[str, float],
    baseline: Mapping[str, float],
    clusters: Mapping[str, str],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Token reduction 1 - mean(tokens) / mean(baseline), with its interval over resampled clips.

    Args:
        tokens: tokens of an answer by question.
        baseline: of the other run, the same questions.
        clusters: clip of each question.
        resamples: draws.
        level: of the interval.
        seed: of the draws.
    """
    names = sorted(tokens)
    layout = _Layout([Unit(name=name, value=0.0, cluster=clusters[name]) for name in names])
    ours, theirs = (np.array([side[name] for name in names], dtype=np.float64) for side in (tokens, baseline))
    if not theirs.sum():
        return Interval(math.nan, math.nan, math.nan)
    value = float(1 - ours.sum() / theirs.sum())
    if layout.num_clusters < 2:
        return Interval(value, math.nan, math.nan)
    weights = draw_clusters(layout.num_clusters, resamples, seed)[:, layout.cluster_U]
    totals = weights @ theirs
    draws = 1 - np.divide(weights @ ours, totals, out=np.full(len(weights), np.nan), where=totals > 0)
    return _interval(value, draws, level)


def mcnemar(right: Mapping[str, bool], baseline: Mapping[str, bool]) -> dict[str, Any]:
    """McNemar's exact test: are the questions that one run alone got right more than the other's?

    Under no difference each of the n = b + c discordant questions goes either way with probability 1/2;
    p = min(1, 2 * sum over i <= min(b, c) of C(n, i) / 2^n).

    Args:
        right: by question.
        baseline: of the other run, the same questions.

    Returns:
        ``gained`` (b: right here alone), ``lost`` (c), ``p``.
    """
    gained = sum(right[name] and not baseline[name] for name in right)
    lost = sum(baseline[name] and not right[name] for name in right)
    total = gained + lost
    # Whole numbers: at thousands of questions the terms are beyond what a float holds.
    tail, term = 0, 1
    for i in range(min(gained, lost) + 1):
        tail += term
        term = term * (total - i) // (i + 1)
    return {"gained": gained, "lost": lost, "p": min(1.0, 2 * tail / 2**total)}


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and the standard deviation over n - 1; None for one value."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
