"""Which records are worth training on: those whose outcomes vary over several runs of one model. Pure.

Temporal-RLT (arXiv 2506.01908) runs the initial model several times on every record and drops those without variance:
questions that are always or never right, spans whose IoU hardly differs. Number of runs, thresholds, grounded QA and
strata are not published; they are settings here, with defaults of ours.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verl_care.data.records import DataError, replace_file
from verl_care.rewards.scorer import GROUNDED_QA, GROUNDING, PROBLEM_TYPES

BALANCES = ("proportional", "equal")
"""How a budget is shared: in proportion to what passes in each stratum, or evenly as far as a stratum reaches."""

KEPT = "kept"
TOO_HARD = "too hard"
TOO_EASY = "too easy"
LOW_VARIANCE = "low variance"
NO_RUNS = "too few runs"
OVER_BUDGET = "over budget"

_LOGGED = ("step", "prompt_key", "data_source", "acc", "acc_answer", "acc_iou", "reward_error")

OUTCOMES = (KEPT, TOO_HARD, TOO_EASY, LOW_VARIANCE, NO_RUNS, OVER_BUDGET)
"""What becomes of a record, and why."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    """What several runs of one model scored on one record."""

    prompt_key: str
    """The record's name, data source and index."""
    data_source: str
    problem_type: str
    """One of the scorer's ``PROBLEM_TYPES``."""
    acc: tuple[float, ...]
    """Accuracy of each run, in [0, 1]; for temporal grounding the IoU."""
    acc_answer: tuple[float, ...] = ()
    """Accuracy of the option in each run of grounded QA; empty if not known."""
    acc_iou: tuple[float, ...] = ()
    """IoU of each run of grounded QA; empty if not known."""

    def __post_init__(self) -> None:
        if self.problem_type not in PROBLEM_TYPES:
            raise ValueError(
                f"record {self.prompt_key}: problem_type is {self.problem_type!r}; "
                f"set one of {', '.join(PROBLEM_TYPES)}"
            )
        for name in ("acc", "acc_answer", "acc_iou"):
            for value in getattr(self, name):
                if not 0 <= value <= 1:
                    raise ValueError(f"record {self.prompt_key}: {name}: expected numbers in [0, 1]; got {value!r}")


@dataclass(frozen=True, kw_only=True)
class KeepRules:
    """Which records are kept."""

    min_runs: int = 2
    """Records with fewer runs are dropped: one outcome has no variance."""
    correct_threshold: float = 0.5
    """A run is right if its accuracy is at least this, in (0, 1]; counts for everything but temporal grounding."""
    min_pass_rate: float = 0.0
    """Questions are kept whose share of right runs is above this, in [0, 1); 0 drops those that are never right."""
    max_pass_rate: float = 1.0
    """Questions are kept whose share of right runs is below this, in (0, 1]; 1 drops those that are always right."""
    min_variance: float = 0.0
    """Spans are kept whose variance of the IoU is above 0 and at least this, in [0, 0.25]."""
    variance_quantile: float | None = None
    """Instead of ``min_variance``: this quantile of the variances of all spans, in [0, 1); 0.9 keeps a tenth."""
    keep: int | None = None
    """Budget: as many records at most; None keeps all that pass."""
    balance: str = "proportional"
    """One of ``BALANCES``; strata are data source and problem type."""
    seed: int = 0
    """Of the draw inside a stratum; the order of the records changes nothing."""

    def __post_init__(self) -> None:
        _require(self.min_runs >= 1, "min_runs", self.min_runs, "a whole number >= 1")
        _require(0 < self.correct_threshold <= 1, "correct_threshold", self.correct_threshold, "a number in (0, 1]")
        _require(0 <= self.min_pass_rate < 1, "min_pass_rate", self.min_pass_rate, "a share in [0, 1)")
        above = self.min_pass_rate < self.max_pass_rate <= 1
        _require(above, "max_pass_rate", self.max_pass_rate, "a share in (min_pass_rate, 1]")
        _require(0 <= self.min_variance <= 0.25, "min_variance", self.min_variance, "a number in [0, 0.25]")
        quantile = self.variance_quantile
        _require(quantile is None or 0 <= quantile < 1, "variance_quantile", quantile, "a share in [0, 1)")
        one = quantile is None or not self.min_variance
        _require(one, "variance_quantile", quantile, "nothing beside min_variance")
        _require(self.keep is None or self.keep >= 1, "keep", self.keep, "a whole number >= 1")
        _require(self.balance in BALANCES, "balance", self.balance, " or ".join(BALANCES))


@dataclass(frozen=True, kw_only=True)
class Score:
    """One row of the score table."""

    prompt_key: str
    data_source: str
    problem_type: str
    runs: int
    pass_rate: float
    """Share of right runs; for temporal grounding the mean IoU. NaN without runs."""
    variance: float
    """Variance of the accuracy over the runs (of the IoU where that is known), divided by their number. NaN without."""
    outcome: str
    """One of ``OUTCOMES``."""

    @property
    def stratum(self) -> tuple[str, str]:
        """Data source and problem type."""
        return self.data_source, self.problem_type


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The outcome of every record, in the order they were given."""

    scores: tuple[Score, ...]
    variance_threshold: float
    """Variance that spans had to reach."""
    counts: dict[str, int] = field(default_factory=dict)
    """Records by outcome."""

    @property
    def kept(self) -> frozenset[str]:
        """Names of the kept records."""
        return frozenset(score.prompt_key for score in self.scores if score.outcome == KEPT)


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"{name}: expected {expected}; got {value!r}")


def compute_variance(values: Sequence[float]) -> float:
    """Mean squared distance from the mean: sum of (v - mean)^2 / k, in [0, 0.25] for values in [0, 1]; NaN for none.

    With k right-or-wrong runs it is p * (1 - p): 7/64 for one right run of eight.
    """
    if not values:
        return math.nan
    if min(values) == max(values):
        # The mean of equal numbers may be rounded away from them.
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / len(values)


def compute_pass_rate(values: Sequence[float], correct_threshold: float) -> float:
    """Share of values that are at least the threshold; NaN for none."""
    return sum(value >= correct_threshold for value in values) / len(values) if values else math.nan


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the values lie, linear between neighbours; 0.0 for none.

    Args:
        values: in any order.
        share: in [0, 1].
    """
    if not values:
        return 0.0
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def allocate(
    sizes: Mapping[tuple[str, str], int], budget: int, balance: str = "proportional"
) -> dict[tuple[str, str], int]:
    """Shares a budget among strata.

    ``proportional``: budget * size / sum of sizes, rounded down, and what is left one by one to the largest remainders.
    ``equal``: the same number for each; what a small stratum cannot use goes to the others.

    Args:
        sizes: records that passed, by stratum.
        budget: records wanted, >= 0.
        balance: one of ``BALANCES``.

    Returns:
        Records by stratum, none above its size; their sum is the smaller of budget and all sizes. Ties go by name.
    """
    total = sum(sizes.values())
    if budget >= total:
        return dict(sizes)
    if balance == "equal":
        shares = dict.fromkeys(sizes, 0)
        left = budget
        while left:
            open_ = sorted(name for name in sizes if shares[name] < sizes[name])
            each = left // len(open_)
            for name in open_ if each else open_[:left]:
                added = min(max(each, 1), sizes[name] - shares[name])
                shares[name] += added
                left -= added
        return shares
    # Whole numbers throughout: no rounding of floats decides about a record.
    shares = {name: budget * size // total for name, size in sizes.items()}
    order = sorted(sizes, key=lambda name: (-(budget * sizes[name] % total), name))
    for name in order[: budget - sum(shares.values())]:
        shares[name] += 1
    return shares


def _of_spans(runs: Runs) -> tuple[float, ...]:
    return runs.acc if runs.problem_type == GROUNDING else runs.acc_iou


def _judge_question(values: Sequence[float], rules: KeepRules) -> str:
    rate = compute_pass_rate(values, rules.correct_threshold)
    if rate <= rules.min_pass_rate:
        return TOO_HARD
    return TOO_EASY if rate >= rules.max_pass_rate else KEPT


def _judge(runs: Runs, rules: KeepRules, threshold: float) -> str:
    if len(runs.acc) < rules.min_runs:
        return NO_RUNS
    variance = compute_variance(_of_spans(runs))
    varies = variance > 0 and variance >= threshold
    if runs.problem_type == GROUNDING:
        return KEPT if varies else LOW_VARIANCE
    outcome = _judge_question(runs.acc_answer or runs.acc, rules)
    return KEPT if runs.problem_type == GROUNDED_QA and varies else outcome


def select(samples: Iterable[Runs], rules: KeepRules | None = None) -> Selection:
    """Decides which records are kept.

    Questions are kept for mixed outcomes, spans for the variance of their IoU, grounded QA for either of the two (for
    mixed outcomes of the whole accuracy where its parts are not known). A budget is drawn from what passes, by stratum.

    Args:
        samples: one entry a record.
        rules: what is kept; the defaults if None.

    Returns:
        A score and an outcome for every record.

    Raises:
        ValueError: two entries for one record.
    """
    rules = rules or KeepRules()
    samples = list(samples)
    twice = [key for key, count in Counter(runs.prompt_key for runs in samples).items() if count > 1]
    if twice:
        raise ValueError(f"record {twice[0]} has two entries; join its runs into one")
    threshold = rules.min_variance
    if rules.variance_quantile is not None:
        enough = [_of_spans(runs) for runs in samples if len(runs.acc) >= rules.min_runs]
        threshold = quantile([compute_variance(values) for values in enough if values], rules.variance_quantile)
    outcomes = {runs.prompt_key: _judge(runs, rules, threshold) for runs in samples}

    passed: dict[tuple[str, str], list[str]] = defaultdict(list)
    for runs in samples:
        if outcomes[runs.prompt_key] == KEPT:
            passed[runs.data_source, runs.problem_type].append(runs.prompt_key)
    if rules.keep is not None:
        shares = allocate({name: len(keys) for name, keys in passed.items()}, rules.keep, rules.balance)
        for name, keys in passed.items():
            drawn = random.Random(f"{rules.seed}/{name[0]}/{name[1]}").sample(sorted(keys), shares[name])
            outcomes |= dict.fromkeys(set(keys).difference(drawn), OVER_BUDGET)

    scores = tuple(_score(runs, rules, outcomes[runs.prompt_key]) for runs in samples)
    counts = Counter(score.outcome for score in scores)
    return Selection(
        scores=scores, variance_threshold=threshold, counts={outcome: counts[outcome] for outcome in OUTCOMES}
    )


def _score(runs: Runs, rules: KeepRules, outcome: str) -> Score:
    if runs.problem_type == GROUNDING:
        pass_rate = math.fsum(runs.acc) / len(runs.acc) if runs.acc else math.nan
    else:
        pass_rate = compute_pass_rate(runs.acc_answer or runs.acc, rules.correct_threshold)
    return Score(
        prompt_key=runs.prompt_key,
        data_source=runs.data_source,
        problem_type=runs.problem_type,
        runs=len(runs.acc),
        pass_rate=pass_rate,
        variance=compute_variance(_of_spans(runs) or runs.acc),
        outcome=outcome,
    )


def histogram(scores: Iterable[Score], bins: int = 8) -> dict[tuple[str, str], list[int]]:
    """Records by pass rate, one list of ``bins`` counts a stratum; the last bin includes 1. Without runs they are out.

    Args:
        scores: all of a selection, or those that were kept.
        bins: of equal width over [0, 1].
    """
    counts: dict[tuple[str, str], list[int]] = {}
    for score in scores:
        row = counts.setdefault(score.stratum, [0] * bins)
        if not math.isnan(score.pass_rate):
            row[min(int(score.pass_rate * bins), bins - 1)] += 1
    return counts


def read_runs(
    run_dir: str | Path, problem_types: Mapping[str, str], *, first_step: int = 0, last_step: int | None = None
) -> list[Runs]:
    """What a training run scored, from its per-rollout log: pass rates without any inference.

    Args:
        run_dir: the run's folder (``trainer.default_local_dir``), or the log's own.
        problem_types: problem type of every record by its name, as ``read_problem_types`` gives it.
        first_step: steps before are left out.
        last_step: steps after are left out; None for none. A policy learns: early steps tell more about the start.

    Returns:
        One entry a record that was rolled out, in the order of the first rollouts. Rollouts whose reward function
        raised have no outcome and are left out.

    Raises:
        FileNotFoundError: no log there.
        ValueError: a rollout of a record that is not among ``problem_types``.
    """
    from verl_care.workers.rollout_log import SCHEMA, read_log

    # Never the responses: they are most of a log.
    columns = [name for name in _LOGGED if name in SCHEMA.names]
    found: dict[str, dict[str, Any]] = {}
    for table in read_log(run_dir, columns):
        for row in table.to_pylist():
            step = row["step"]
            if step < first_step or (last_step is not None and step > last_step):
                continue
            if row["acc"] is None or row["reward_error"]:
                continue
            key = row["prompt_key"]
            if key not in problem_types:
                raise ValueError(
                    f"{run_dir}, step {step}: record {key} is not in the data; give the run's own data files"
                )
            entry = found.setdefault(
                key, {"data_source": row["data_source"], "acc": [], "acc_answer": [], "acc_iou": []}
            )
            for name in ("acc", "acc_answer", "acc_iou"):
                if row.get(name) is not None:
                    entry[name].append(row[name])
    return [_from_log(key, problem_types[key], entry) for key, entry in found.items()]


def _from_log(key: str, problem_type: str, entry: Mapping[str, Any]) -> Runs:
    # The log keeps 32 bits, in which a rounded sum may end up a hair above 1.
    bounded = {name: tuple(min(1.0, value) for value in entry[name]) for name in ("acc", "acc_answer", "acc_iou")}
    acc = bounded.pop("acc")
    # Parts of some rollouts alone are no parts: a log that began before they were written.
    parts = {name: values for name, values in bounded.items() if len(values) == len(acc)}
    grounded = parts if problem_type == GROUNDED_QA else {}
    return Runs(prompt_key=key, data_source=entry["data_source"], problem_type=problem_type, acc=acc, **grounded)


def read_problem_types(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Problem type of every record by its name.

    Args:
        rows: records as ``data.records`` describes them.
    """
    return {f"{row['data_source']}/{row['extra_info']['index']}": row["extra_info"]["problem_type"] for row in rows}


def write_selection(data_files: Sequence[str | Path], selection: Selection, out_dir: str | Path) -> tuple[Path, Path]:
    """Writes the kept records and the score table.

    Args:
        data_files: Parquet files that the records came from.
        selection: what ``select`` decided.
        out_dir: folder to write to; made if need be.

    Returns:
        ``subset.parquet``, the kept records with all their columns in the order of the files, and ``scores.parquet``,
        one row a record of the selection.

    Raises:
        DataError: nothing was kept, or a kept record is in none of the files.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    kept = selection.kept
    if not kept:
        counts = ", ".join(f"{outcome} {count}" for outcome, count in selection.counts.items())
        raise DataError(f"nothing passes the keep rules ({counts}); loosen them or run more inferences")
    parts, missing = [], set(kept)
    for path in data_files:
        table = pq.read_table(path)
        named = table.select(["data_source", "extra_info"]).to_pylist()
        keys = [f"{row['data_source']}/{row['extra_info']['index']}" for row in named]
        # A record that is there twice is kept once.
        wanted = []
        for key in keys:
            wanted.append(key in missing)
            missing.discard(key)
        parts.append(table.filter(pa.array(wanted, pa.bool_())))
    if missing:
        raise DataError(f"record {min(missing)} is in none of the data files; give all files that were selected from")
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    paths = out_dir / "subset.parquet", out_dir / "scores.parquet"
    names = list(Score.__dataclass_fields__)
    scores = pa.table({name: [getattr(score, name) for score in selection.scores] for name in names})
    for path, table in zip(paths, (pa.concat_tables(parts, promote_options="permissive"), scores), strict=True):
        with replace_file(path) as unfinished:
            pq.write_table(table, unfinished)
    return paths
