"""Answers -> figures of a benchmark: scores by reading, over seeds, with intervals; tokens; comparisons. Pure."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verl_care.evaluation import statistics
from verl_care.evaluation.items import Benchmark, Item
from verl_care.evaluation.metrics import Metric, Scored, metric_of
from verl_care.evaluation.metrics.base import READINGS, STRICT
from verl_care.evaluation.prompts import digest_source
from verl_care.evaluation.statistics import Interval, Unit
from verl_care.evaluation.voting import answer_of
from verl_care.rewards.parsing import find_answer

RIGHT = 0.5
"""From this strict value on a graded answer counts as right, where answers are told apart into right and wrong."""

INDISTINGUISHABLE = "not distinguishable"


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What became of one item under one seed."""

    item: Item
    seed: int = 0
    text: str | None
    """The response; None where the request failed."""
    error: str | None = None
    num_tokens: float | None = None
    truncated: bool | None = None
    """Whether the response was cut at its longest length; None if not known."""
    num_frames: float | None = None
    """Frames that were looked at, where a strategy decides on them."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table of items: everything a later comparison needs."""

    benchmark: str
    key: str
    video: str
    seed: int
    blind: bool
    prompt: str
    """Digest of the prompt's words and of how its media are sampled."""
    text: str | None
    error: str | None
    strict: float
    lenient: float
    official: float | None
    readable: bool
    tagged: bool
    truncated: bool | None
    tokens: float | None
    frames: float | None


@dataclass(frozen=True, kw_only=True)
class BenchmarkScores:
    """Answers to a benchmark, scored; an item that failed is there with 0."""

    metric: Metric
    benchmark: Benchmark
    by_seed: Mapping[int, Sequence[tuple[Answered, Scored]]]

    @property
    def readings(self) -> tuple[str, ...]:
        """Readings that this benchmark has."""
        first = next(iter(self.by_seed.values()))[0][1]
        return tuple(reading for reading in READINGS if reading in first.values)

    def units(self, reading: str) -> list[Unit]:
        """What the headline averages, values averaged over the seeds."""
        return average_units([self._seed_units(seed, reading) for seed in self.by_seed])

    def _seed_units(self, seed: int, reading: str) -> list[Unit]:
        return self.metric.units([scored for _, scored in self.by_seed[seed]], reading)

    def seed_scores(self, reading: str) -> list[float]:
        """The headline of each seed."""
        return [statistics.group_mean(self._seed_units(seed, reading)) for seed in self.by_seed]

    @property
    def answered(self) -> list[tuple[Answered, Scored]]:
        """All answers of all seeds."""
        return [pair for pairs in self.by_seed.values() for pair in pairs]


def average_units(runs: Sequence[Sequence[Unit]]) -> list[Unit]:
    """Units of the same names, with their mean values."""
    values: dict[str, list[float]] = {}
    for units in runs:
        for unit in units:
            values.setdefault(unit.name, []).append(unit.value)
    return [
        Unit(name=u.name, value=math.fsum(values[u.name]) / len(values[u.name]), cluster=u.cluster, path=u.path)
        for u in runs[0]
    ]


def score_benchmark(benchmark: Benchmark, answers: Sequence[Answered]) -> BenchmarkScores:
    """Scores the answers to a benchmark.

    Args:
        benchmark: its items.
        answers: one for each item and seed, in any order.

    Raises:
        ValueError: an item without an answer, or with two, under a seed.
    """
    metric = metric_of(benchmark.name)
    by_seed: dict[int, dict[str, Answered]] = {}
    for answer in answers:
        if by_seed.setdefault(answer.seed, {}).setdefault(answer.item.key, answer) is not answer:
            raise ValueError(f"item {answer.item.key} has two answers under seed {answer.seed}")
    scored: dict[int, list[tuple[Answered, Scored]]] = {}
    for seed, found in sorted(by_seed.items()):
        lacking = [item.key for item in benchmark.items if item.key not in found]
        if lacking:
            raise ValueError(f"item {lacking[0]} has no answer under seed {seed}; it must not leave the denominator")
        scored[seed] = [(found[item.key], _score(metric, found[item.key])) for item in benchmark.items]
    return BenchmarkScores(metric=metric, benchmark=benchmark, by_seed=scored)


def _score(metric: Metric, answer: Answered) -> Scored:
    # As the published evaluators do: without tags the whole response is the answer.
    values, readable = metric.score(answer.item, answer_of(answer.text, tagged=False))
    return Scored(item=answer.item, values=values, readable=readable)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and not math.isnan(value)]
    return math.fsum(known) / len(known) if known else None


def _mean_tables(tables: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    return {name: _mean([table.get(name) for table in tables]) for name in tables[0]}


def summarise(
    scores: BenchmarkScores, others: Sequence[BenchmarkScores] = (), *, resamples: int = statistics.RESAMPLES
) -> dict[str, Any]:
    """Figures of a benchmark in JSON types; shares and scores in [0, 1], None where there is nothing to average.

    Args:
        scores: of the benchmark.
        others: of the run's other benchmarks, for figures that need two of them.
        resamples: draws of the bootstraps.
    """
    pairs = scores.answered
    units = scores.units(STRICT)
    summary: dict[str, Any] = {
        "metric": scores.metric.label,
        "items": len(scores.benchmark.items),
        "counted": len(units),
        "videos": len({item.video for item in scores.benchmark.items}),
        "seeds": list(scores.by_seed),
        "failed": sum(answer.error is not None for answer, _ in pairs),
        "headline": {},
        "figures": {},
        "tables": {},
    }
    for reading in scores.readings:
        mean, std = statistics.mean_and_std(scores.seed_scores(reading))
        interval = statistics.bootstrap(scores.units(reading), resamples=resamples)
        summary["headline"][reading] = {"mean": mean, "std": std, "low": interval.low, "high": interval.high}
        by_seed = [[scored for _, scored in pairs_] for pairs_ in scores.by_seed.values()]
        beside = [
            {other.benchmark.name: [scored for _, scored in other.by_seed[seed]] for other in others}
            for seed in scores.by_seed
        ]
        summary["figures"][reading] = _mean_tables(
            [
                scores.metric.figures(entries, reading) | scores.metric.figures_with(entries, found, reading)
                for entries, found in zip(by_seed, beside, strict=True)
            ]
        )
        tables = [scores.metric.tables(entries, reading) for entries in by_seed]
        summary["tables"][reading] = {name: _mean_tables([table[name] for table in tables]) for name in tables[0]}
    right = [_is_right(scores, scored) for _, scored in pairs]
    tokens = [answer.num_tokens for answer, _ in pairs]
    summary["tokens"] = {
        "mean": _mean(tokens),
        "right": _mean([count for count, is_right in zip(tokens, right, strict=True) if is_right]),
        "wrong": _mean([count for count, is_right in zip(tokens, right, strict=True) if not is_right]),
    }
    summary["shares"] = {
        "truncated": _mean([answer.truncated for answer, _ in pairs]),
        "tagged": _mean([_is_tagged(answer.text) for answer, _ in pairs]),
        "unparsed": _mean([not scored.readable for _, scored in pairs]),
    }
    summary["frames"] = _mean([answer.num_frames for answer, _ in pairs])
    moved = [item.reordered for item in scores.benchmark.items if item.reordered is not None]
    summary["reordered"] = {"moved": sum(moved), "left": len(moved) - sum(moved)} if moved else None
    return _without_nan(summary)


def _is_right(scores: BenchmarkScores, scored: Scored) -> bool:
    return scored.values[STRICT][scores.metric.headline] >= RIGHT


def _is_tagged(text: str | None) -> bool:
    return text is not None and find_answer(text) is not None


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def prompt_digest(item: Item) -> str:
    """Digest of a prompt's words and of how its media are sampled, wherever the media lie."""
    turns = [
        {
            **turn,
            "content": [{k: v for k, v in part.items() if k not in ("video", "image")} for part in turn["content"]],
        }
        for turn in item.messages
    ]
    return hashlib.blake2b(digest_source(turns).encode(), digest_size=8).hexdigest()


def to_rows(scores: BenchmarkScores, *, blind: bool = False) -> list[Row]:
    """The table of items of a benchmark."""
    part = scores.metric.headline
    return [
        Row(
            benchmark=scores.benchmark.name,
            key=answer.item.key,
            video=answer.item.video,
            seed=answer.seed,
            blind=blind,
            prompt=prompt_digest(answer.item),
            text=answer.text,
            error=answer.error,
            strict=scored.values["strict"][part],
            lenient=scored.values["lenient"][part],
            official=scored.values["official"][part] if "official" in scored.values else None,
            readable=scored.readable,
            tagged=_is_tagged(answer.text),
            truncated=answer.truncated,
            tokens=answer.num_tokens,
            frames=answer.num_frames,
        )
        for answer, scored in scores.answered
    ]


def compare(
    scores: BenchmarkScores,
    baseline: Sequence[Mapping[str, Any]],
    *,
    same_budget: bool,
    resamples: int = statistics.RESAMPLES,
) -> dict[str, Any]:
    """A run against a baseline run, on the items that both have.

    Args:
        scores: of the run.
        baseline: rows of the baseline's table of items, of this benchmark and not blind.
        same_budget: whether both ran under one budget (longest answer, frames, strategy).
        resamples: draws of the bootstrap.

    Returns:
        ``items`` compared, ``difference`` by reading with its interval and a ``verdict`` (``better``, ``worse``, or
        ``not distinguishable`` where the interval holds 0), ``mcnemar`` for scores of right and wrong alone, and
        ``token_reduction``: with its interval, or with the reason why there is none.

    Raises:
        ValueError: no item in common.
    """
    own = {answer.item.key for answer, _ in scores.answered}
    theirs: dict[str, list[Mapping[str, Any]]] = {}
    for row in baseline:
        if row["key"] in own:
            theirs.setdefault(row["key"], []).append(row)
    if not theirs:
        raise ValueError(f"{scores.benchmark.name}: the baseline run has none of these items")
    result: dict[str, Any] = {"items": len(theirs), "left_out": len(own) - len(theirs), "difference": {}}
    pairs = [(answer, scored) for answer, scored in scores.answered if answer.item.key in theirs]
    for reading in scores.readings:
        if any(row[reading] is None for rows in theirs.values() for row in rows):
            continue
        ours = _common_units(scores, reading, theirs)
        others = _baseline_units(scores, reading, theirs)
        interval = statistics.paired_bootstrap(ours, others, resamples=resamples)
        result["difference"][reading] = {**interval.to_dict(), "verdict": verdict(interval)}
        if reading == STRICT:
            result["mcnemar"] = _mcnemar(ours, others)
    result["token_reduction"] = _token_reduction(pairs, theirs, same_budget, resamples)
    return _without_nan(result)


def verdict(interval: Interval) -> str:
    """``better``, ``worse``, or ``not distinguishable`` for an interval that holds 0, or that there is none of."""
    if math.isnan(interval.low) or interval.holds_zero:
        return INDISTINGUISHABLE
    return "better" if interval.value > 0 else "worse"


def _common_units(scores: BenchmarkScores, reading: str, common: Mapping[str, Any]) -> list[Unit]:
    return average_units(
        [
            scores.metric.units([scored for answer, scored in pairs if answer.item.key in common], reading)
            for pairs in scores.by_seed.values()
        ]
    )


def _baseline_units(
    scores: BenchmarkScores, reading: str, rows: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[Unit]:
    items = {item.key: item for item in scores.benchmark.items}
    part = scores.metric.headline
    by_seed: dict[int, list[Scored]] = {}
    for key, found in rows.items():
        for row in found:
            scored = Scored(item=items[key], values={reading: {part: row[reading]}}, readable=row["readable"])
            by_seed.setdefault(row["seed"], []).append(scored)
    return average_units([scores.metric.units(entries, reading) for entries in by_seed.values()])


def _mcnemar(ours: Sequence[Unit], others: Sequence[Unit]) -> dict[str, Any] | None:
    if any(0 < unit.value < 1 for unit in (*ours, *others)):
        # Graded answers, or seeds that disagree: no question is simply right or wrong.
        return None
    right, baseline = ({unit.name: unit.value >= RIGHT for unit in units} for units in (ours, others))
    return statistics.mcnemar(right, baseline)


def _token_reduction(
    pairs: Sequence[tuple[Answered, Scored]],
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    same_budget: bool,
    resamples: int,
) -> dict[str, Any]:
    if not same_budget:
        return {"reason": "not compared: the runs have different budgets"}
    if any(row["prompt"] != prompt_digest(answer.item) for answer, _ in pairs for row in rows[answer.item.key]):
        return {"reason": "not compared: the runs have different prompts"}
    ours: dict[str, list[float | None]] = {}
    for answer, _ in pairs:
        ours.setdefault(answer.item.key, []).append(answer.num_tokens)
    means = {key: _mean(counts) for key, counts in ours.items()}
    others = {key: _mean([row["tokens"] for row in found]) for key, found in rows.items()}
    known = [key for key in means if means[key] is not None and others[key] is not None]
    if not known:
        return {"reason": "not compared: no token counts"}
    interval = statistics.bootstrap_reduction(
        {key: means[key] or 0.0 for key in known},
        {key: others[key] or 0.0 for key in known},
        {answer.item.key: answer.item.video for answer, _ in pairs},
        resamples=resamples,
    )
    return {**interval.to_dict(), "items": len(known), "verdict": _fewer(interval)}


def _fewer(interval: Interval) -> str:
    found = verdict(interval)
    return found if found == INDISTINGUISHABLE else ("fewer" if interval.value > 0 else "more")
