"""What each shaping rule would have given on the rollouts of a finished run.

Reads the per-rollout log of a run, or verl's own dumps (``trainer.rollout_data_dir``), and calls the rules on it update
by update, with the state that each would have built up. The rollouts stay those of the run: this shows what a rule pays
for, not where it would have led (``verl-care simulate`` does that, in a model).
"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from verl_care.shaping import get_rule, get_rule_class, groups, list_rules
from verl_care.shaping.base import NoState, Properties, Rule, Shaped, ShapingBatch

logger = logging.getLogger(__name__)

LOG_COLUMNS = ["step", "uid", "prompt_key", "acc", "score", "bonus", "temporal_bonus", "length", "evicted_pass_rate"]
"""Columns of the rollout log that a replay reads."""

LENGTH_EDGES = torch.unique(torch.logspace(0, 17, 103, base=2).round())
"""Edges of the length bins, in tokens: six to an octave."""

MIN_SHARE = 1e-3
"""Share of the responses that a length bin needs to be drawn; the JSON has every bin."""

EQUAL = 1e-6
"""Rewards closer than this count as equal."""


class ReplayError(ValueError):
    """Rollouts that cannot be read or a rule that cannot be called; the message names file, column and remedy."""


@dataclass(frozen=True, kw_only=True)
class NoShaping(Rule):
    """Plain GRPO, to compare with: no bonus."""

    name = "none"
    source = "no shaping"
    properties = Properties(ranks_wrong_by_length=False, signal_when_all_right=False, right_below_wrong=False)

    def shape(self, batch: ShapingBatch, state: Any) -> tuple[Shaped, Any]:
        return Shaped(bonus=torch.zeros_like(batch.length)), state


@dataclass(frozen=True, kw_only=True)
class Logged(Rule):
    """The bonus that stands in the log."""

    name = "logged"
    source = "the run itself"
    properties = Properties(
        ranks_wrong_by_length=False, signal_when_all_right=False, right_below_wrong=False, needs=("logged_bonus",)
    )

    def shape(self, batch: ShapingBatch, state: Any) -> tuple[Shaped, Any]:
        return Shaped(bonus=batch.extra["logged_bonus"]), state


def parse_rule(spec: str) -> Rule:
    """A rule from the command line: ``alp:beta=1e-4,gate=right_only``; values are JSON, else text.

    Raises:
        ReplayError: no such rule, or a constant that it does not take.
    """
    name, _, constants = spec.partition(":")
    if name in ("none", "logged") and not constants:
        return NoShaping() if name == "none" else Logged()
    try:
        return get_rule(name, **parse_assignments(constants.split(",") if constants else []))
    except ValueError as error:
        raise ReplayError(f"--rule {spec}: {error}") from None


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """``["a=1", "b=x"]`` as ``{"a": 1, "b": "x"}``.

    Raises:
        ReplayError: one without a name or a value.
    """
    parsed: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not name.strip() or not equals:
            raise ReplayError(f"{assignment!r}: expected name=value")
        try:
            parsed[name.strip()] = json.loads(value)
        except json.JSONDecodeError:
            parsed[name.strip()] = value.strip()
    return parsed


def default_rules(available: Iterable[str] = ()) -> tuple[dict[str, Rule], dict[str, str]]:
    """All rules that need no constant and no column but ``available``; and why not the rest.

    Returns:
        Rules by label, plain GRPO first; the reason by name for those left out.
    """
    rules: dict[str, Rule] = {"none": NoShaping()}
    left_out: dict[str, str] = {}
    for name in list_rules():
        missing = [column for column in get_rule_class(name).properties.needs if column not in set(available)]
        if missing:
            left_out[name] = f"needs {', '.join(missing)} (--fill)"
            continue
        try:
            rules[name] = get_rule(name)
        except ValueError:
            left_out[name] = f"has a constant without a default (--rule {name}:…)"
    return rules, left_out


# Reading


@dataclass(frozen=True)
class Run:
    """Where the rollouts of a run lie: files in the order of its updates."""

    path: Path
    files: tuple[Path, ...]
    num_rollouts: int | None
    """Known beforehand for our log only."""

    @property
    def is_dump(self) -> bool:
        """Whether these are verl's own dumps."""
        return self.files[0].suffix == ".jsonl"


def open_run(path: str | Path) -> Run:
    """Finds the rollouts of a run; warns where they do not begin with its first step.

    Args:
        path: a run's folder (``trainer.default_local_dir``), its ``care_rollouts``, a folder of dumps, or one file.

    Raises:
        ReplayError: none there.
    """
    path = Path(path)
    if path.is_file():
        candidates = [path]
    else:
        folders = [path / "care_rollouts", path]
        candidates = next((found for folder in folders if (found := _numbered(folder, ".parquet"))), [])
        candidates = candidates or _numbered(path, ".jsonl")
    if not candidates or candidates[0].suffix not in (".parquet", ".jsonl"):
        raise ReplayError(
            f"{path}: no rollouts; expected a run of verl_care (care_rollouts/<step>.parquet) "
            "or verl's trainer.rollout_data_dir (<step>.jsonl)"
        )
    first = candidates[0].stem.partition("_")[0]
    if not path.is_file() and int(first) > 1:
        logger.warning(
            f"{path}: the log begins at step {first}; so do the state of rules and what is said of its beginning"
        )
    if candidates[0].suffix == ".jsonl":
        return Run(path, tuple(candidates), None)
    try:
        num_rollouts = sum(pq.read_metadata(file).num_rows for file in candidates)
    except (pa.ArrowInvalid, OSError) as error:
        raise ReplayError(f"{path}: {error}") from None
    return Run(path, tuple(candidates), num_rollouts)


def _numbered(folder: Path, suffix: str) -> list[Path]:
    files = [file for file in folder.glob(f"*{suffix}") if file.stem.replace("_", "").isdigit()]
    return sorted(files, key=lambda file: [int(part) for part in file.stem.split("_")])


def read_batches(
    run: Run,
    *,
    fill: Mapping[str, float] | None = None,
    correct_threshold: float = 0.1,
    tokenizer: Any = None,
    length_unit: str = "tokens",
) -> Iterator[ShapingBatch]:
    """One batch an update, in order.

    Args:
        run: from ``open_run``.
        fill: values for columns of ``extra`` that the log does not hold, the same for every response.
        correct_threshold: accuracies above count as right.
        tokenizer: counts the tokens of verl's dumps, which hold texts only.
        length_unit: ``tokens``, or ``words`` or ``characters`` for dumps without a tokenizer.
    """
    for file in run.files:
        if run.is_dump:
            columns = _read_dump(file, tokenizer, length_unit)
        else:
            columns = _read_log(file)
        size = len(columns["length"])
        extra: dict[str, Any] = {name: torch.full((size,), float(value)) for name, value in (fill or {}).items()}
        extra.update(columns["extra"])
        yield ShapingBatch(
            score=columns["score"],
            accuracy=columns["acc"],
            correct=columns["acc"] > correct_threshold,
            length=columns["length"],
            group=columns["group"],
            prompt_key=columns["prompt_key"],
            step=columns["step"],
            extra=extra,
        )


def _read_log(file: Path) -> dict[str, Any]:
    try:
        table = pq.read_table(file, columns=LOG_COLUMNS)
    except (pa.ArrowInvalid, KeyError, OSError) as error:
        raise ReplayError(f"{file}: {error}") from None
    for name in ("uid", "acc", "score", "length"):
        if table[name].null_count:
            raise ReplayError(f"{file}: column {name} has {table[name].null_count} nulls; expected a value a response")

    def floats(name: str) -> Tensor:
        return torch.from_numpy(table[name].cast(pa.float32()).fill_null(0.0).to_numpy().copy())

    temporal = floats("temporal_bonus")
    extra: dict[str, Any] = {}
    if table["bonus"].null_count == 0:
        extra["logged_bonus"] = floats("bonus") - temporal
    evicted = table["evicted_pass_rate"][0].as_py() if len(table) else None
    if evicted:
        extra["evicted_pass_rate"] = torch.tensor(evicted, dtype=torch.float32)
    return {
        # The temporal bonus does not depend on the length rule, so every rule meets it as part of the score.
        "score": floats("score") + temporal,
        "acc": floats("acc"),
        "length": floats("length"),
        "group": _encode(table["uid"]),
        "prompt_key": table["prompt_key"].to_pylist() if table["prompt_key"].null_count == 0 else (),
        "step": table["step"][0].as_py() if len(table) else 0,
        "extra": extra,
    }


def _encode(column: pa.ChunkedArray) -> Tensor:
    indices = column.combine_chunks().dictionary_encode().indices
    return torch.from_numpy(indices.to_numpy(zero_copy_only=False).astype("int64"))


def _read_dump(file: Path, tokenizer: Any, length_unit: str) -> dict[str, Any]:
    """Responses of one of verl's dumps; of a session with several outputs the last one counts."""
    rows: dict[str, dict[str, Any]] = {}
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                text, score = row["output"], float(row["score"])
            except (ValueError, KeyError, TypeError) as error:
                raise ReplayError(f"{file}, line {number}: not a dump of verl: {error!r}") from None
            # V1's uid names sample, session and output; V0 and older dumps may have none.
            uid = str(row.get("uid") or f"{row.get('input')}|{row.get('gts')}")
            sample, session, _ = parts if len(parts := uid.rsplit("_", 2)) == 3 else (uid, str(number), "0")
            rows[f"{sample}_{session}"] = {**row, "output": text, "score": score, "sample": sample}
    values = list(rows.values())
    group_of: dict[str, int] = {}
    group = [group_of.setdefault(row["sample"], len(group_of)) for row in values]
    score = torch.tensor([row["score"] for row in values], dtype=torch.float32)
    return {
        "score": score,
        "acc": _dump_accuracy(file, values, score),
        "length": _dump_lengths(file, values, tokenizer, length_unit),
        "group": torch.tensor(group, dtype=torch.int64),
        "prompt_key": [f"{row.get('input')}|{row.get('gts')}" for row in values],
        "step": int(values[0].get("step", file.stem)) if values else 0,
        "extra": {},
    }


def _dump_accuracy(file: Path, rows: Sequence[Mapping[str, Any]], score: Tensor) -> Tensor:
    if all(isinstance(row.get("acc"), int | float) for row in rows):
        return torch.tensor([float(row["acc"]) for row in rows], dtype=torch.float32)
    if bool(((score < 0) | (score > 1)).any()):
        from verl_care.rewards.format import format_reward

        score = score - torch.tensor([format_reward(row["output"]) for row in rows])
    if bool(((score < 0) | (score > 1)).any()):
        low, high = float(score.min()), float(score.max())
        raise ReplayError(
            f"{file}: scores without format run from {low:g} to {high:g} and there is no column acc; "
            "expected accuracies in [0, 1]"
        )
    return score


def _dump_lengths(file: Path, rows: Sequence[Mapping[str, Any]], tokenizer: Any, length_unit: str) -> Tensor:
    texts = [row["output"] for row in rows]
    if length_unit == "words":
        lengths = [len(text.split()) for text in texts]
    elif length_unit == "characters":
        lengths = [len(text) for text in texts]
    elif tokenizer is not None:
        # The dump has lost EOS, which verl counts.
        lengths = [len(ids) + 1 for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []
    else:
        raise ReplayError(
            f"{file}: verl's dumps hold no lengths; give --tokenizer MODEL to count tokens, or --length-unit words"
        )
    return torch.tensor(lengths, dtype=torch.float32)


# Replaying


@dataclass
class RuleReplay:
    """What one rule gave over a run."""

    label: str
    series: list[dict[str, float]] = field(default_factory=list)
    """One row an update: step, mean bonus, share of length-only groups, the rule's own metrics."""
    curve: list[dict[str, float]] = field(default_factory=list)
    """One row a verdict and length bin: verdict (1 right), length, count, mean bonus, mean advantage."""
    totals: dict[str, float] = field(default_factory=dict)
    """Means over the whole run, see ``TOTALS``."""

    def to_dict(self) -> dict[str, Any]:
        """JSON types; NaN, a mean over nothing, becomes null."""

        def clean(row: Mapping[str, float]) -> dict[str, float | None]:
            return {key: value if math.isfinite(value) else None for key, value in row.items()}

        return {
            "rule": self.label,
            "totals": clean(self.totals),
            "curve": [clean(row) for row in self.curve],
            "series": [clean(row) for row in self.series],
        }


TOTALS = {
    "bonus_right": "mean bonus of right answers",
    "bonus_wrong": "mean bonus of wrong answers",
    "advantage_change": "mean |advantage - advantage without the rule|",
    "length_push": "mean of advantage x (length / group mean - 1): above 0 lengthens, below 0 shortens",
    "length_only_groups": "share of groups with equal scores and unequal rewards: all their gradient comes from length",
    "length_only_of_all_wrong": "the same among groups that are all wrong",
    "length_only_of_all_right": "the same among groups that are all right",
    "right_below_wrong_groups": "share of mixed groups in which a right answer ends below a wrong one",
}
"""Figures of a replay by name, with what they mean."""


class _Accumulator:
    """Sums over the updates for one rule."""

    def __init__(self, label: str, rule: Rule) -> None:
        self.rule, self.label = rule, label
        self.state: Any = rule.initial_state() if not isinstance(rule, NoShaping | Logged) else NoState()
        self.curve = torch.zeros(3, 2, len(LENGTH_EDGES) + 1, dtype=torch.float64)
        self.sums: dict[str, float] = dict.fromkeys(TOTALS, 0.0)
        self.weights: dict[str, float] = dict.fromkeys(TOTALS, 0.0)
        self.series: list[dict[str, float]] = []

    def add(self, shared: _Shared, norm_by_std: bool) -> None:
        batch = shared.batch
        shaped, self.state = self.rule(batch, self.state)
        reward_N = batch.score + shaped.bonus
        advantage_N = shaped.advantage
        if advantage_N is None:
            advantage_N = groups.group_advantage(reward_N, batch.group, norm_by_std=norm_by_std)
        ones_N = torch.ones_like(reward_N, dtype=torch.float64)
        for row, value_N in enumerate((ones_N, shaped.bonus.double(), advantage_N.double())):
            self.curve[row].view(-1).index_add_(0, shared.cell_N, value_N)
        spread_G = shared.spread(reward_N)
        length_only_G = (shared.score_spread_G <= EQUAL) & (spread_G > EQUAL)
        lowest_right_G = groups.masked_min(reward_N, batch.correct, shared.index_N, shared.num_groups)
        highest_wrong_G = groups.masked_max(reward_N, ~batch.correct, shared.index_N, shared.num_groups)
        below_G = lowest_right_G < highest_wrong_G - EQUAL
        self._mean("bonus_right", shaped.bonus[batch.correct])
        self._mean("bonus_wrong", shaped.bonus[~batch.correct])
        self._mean("advantage_change", (advantage_N - shared.plain_advantage_N).abs())
        self._mean("length_push", advantage_N * shared.relative_length_N)
        self._mean("length_only_groups", length_only_G)
        self._mean("length_only_of_all_wrong", length_only_G[shared.all_wrong_G])
        self._mean("length_only_of_all_right", length_only_G[shared.all_right_G])
        self._mean("right_below_wrong_groups", below_G[~shared.all_wrong_G & ~shared.all_right_G])
        state_metrics: dict[str, float] = getattr(self.rule, "state_metrics", lambda state: {})(self.state)
        self.series.append(
            {
                "step": float(batch.step),
                "bonus": float(shaped.bonus.mean()),
                "length_only_groups": float(length_only_G.float().mean()),
                "pass_rate": shared.pass_rate,
                "length": shared.mean_length,
                **{key: float(value) for key, value in {**shaped.metrics, **state_metrics}.items()},
            }
        )

    def _mean(self, name: str, values: Tensor) -> None:
        self.sums[name] += float(values.double().sum())
        self.weights[name] += values.numel()

    def result(self) -> RuleReplay:
        totals = {n: self.sums[n] / self.weights[n] if self.weights[n] else math.nan for n in TOTALS}
        curve = []
        edges = [0.0, *LENGTH_EDGES.tolist(), math.inf]
        for verdict in (1, 0):
            for cell in range(len(LENGTH_EDGES) + 1):
                count = float(self.curve[0, verdict, cell])
                if count:
                    bonus, advantage = (float(self.curve[row, verdict, cell]) / count for row in (1, 2))
                    high = edges[cell + 1] if math.isfinite(edges[cell + 1]) else edges[cell] * 2
                    length = math.sqrt(max(edges[cell], 1.0) * high)
                    curve.append(
                        {"right": verdict, "length": length, "count": count, "bonus": bonus, "advantage": advantage}
                    )
        return RuleReplay(self.label, self.series, curve, totals)


class _Shared:
    """What all rules need of one batch, worked out once."""

    def __init__(self, batch: ShapingBatch, norm_by_std: bool) -> None:
        self.batch = batch
        self.index_N, self.num_groups = groups.index_groups(batch.group)
        # Values in (edge below, edge]: a length that is an edge belongs to the bin it closes.
        bin_N = torch.bucketize(batch.length, LENGTH_EDGES)
        self.cell_N = batch.correct.long() * (len(LENGTH_EDGES) + 1) + bin_N
        rate_G = groups.mean(batch.correct.float(), self.index_N, self.num_groups)
        self.all_right_G, self.all_wrong_G = rate_G > 1 - EQUAL, rate_G < EQUAL
        self.score_spread_G = self.spread(batch.score)
        self.plain_advantage_N = groups.group_advantage(batch.score, batch.group, norm_by_std=norm_by_std)
        mean_N = groups.mean(batch.length, self.index_N, self.num_groups)[self.index_N]
        self.relative_length_N = batch.length / mean_N.clamp(min=1e-6) - 1
        self.pass_rate = float(groups.mean(batch.accuracy, self.index_N, self.num_groups).mean())
        self.mean_length = float(batch.length.mean())

    def spread(self, values_N: Tensor) -> Tensor:
        everyone_N = torch.ones_like(self.batch.correct)
        high_G = groups.masked_max(values_N, everyone_N, self.index_N, self.num_groups)
        return high_G - groups.masked_min(values_N, everyone_N, self.index_N, self.num_groups)


def replay(batches: Iterable[ShapingBatch], rules: Mapping[str, Rule], *, norm_by_std: bool = True) -> list[RuleReplay]:
    """Calls every rule on every batch, each with its own state.

    Args:
        batches: in the order of the run.
        rules: by label.
        norm_by_std: verl's ``algorithm.norm_adv_by_std_in_grpo``.

    Raises:
        ReplayError: no rollouts, or a rule that refuses a batch; names the rule and the step.
    """
    accumulators = [_Accumulator(label, rule) for label, rule in rules.items()]
    seen = 0
    for batch in batches:
        if len(batch) == 0:
            continue
        seen += len(batch)
        shared = _Shared(replace(batch, norm_by_std=norm_by_std), norm_by_std)
        for accumulator in accumulators:
            try:
                accumulator.add(shared, norm_by_std)
            except ValueError as error:
                raise ReplayError(f"rule {accumulator.label}, step {batch.step}: {error}") from None
    if not seen:
        raise ReplayError("no rollouts: the files are there but hold no rows")
    return [accumulator.result() for accumulator in accumulators]


# Showing


def render_table(results: Sequence[RuleReplay]) -> Any:
    """The totals as a rich table."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    caption = (
        "|ΔA|: mean change of the advantage. Push: above 0 advantages lengthen responses, below 0 they shorten them. "
        "Length only: groups whose gradient comes from length alone, of all groups, of all-wrong and all-right ones."
    )
    table = Table(title="What each rule gives on these rollouts", caption=caption, box=SIMPLE_HEAD)
    table.add_column("rule", no_wrap=True)
    heads = {
        "bonus_right": "bonus\nright",
        "bonus_wrong": "bonus\nwrong",
        "advantage_change": "|ΔA|",
        "length_push": "push",
        "length_only_groups": "length\nonly",
        "length_only_of_all_wrong": "all\nwrong",
        "length_only_of_all_right": "all\nright",
        "right_below_wrong_groups": "right <\nwrong",
    }
    for head in heads.values():
        table.add_column(head, justify="right", no_wrap=True)
    for result in results:
        cells = []
        for name in heads:
            value = result.totals[name]
            shares = name.endswith("groups") or name.startswith("length_only")
            cells.append("–" if math.isnan(value) else f"{value:.1%}" if shares else f"{value:+.3f}")
        table.add_row(result.label, *cells)
    return table


def write_plots(results: Sequence[RuleReplay], folder: str | Path) -> list[Path]:
    """PNGs: bonus and advantage against length, one panel a rule; competence and stage over the steps.

    Returns:
        The files written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    least = MIN_SHARE * sum(row["count"] for row in results[0].curve)
    shown = [result for result in results if result.label != "none"] or list(results)
    for column, title in (("bonus", "mean bonus"), ("advantage", "mean advantage")):
        num_columns = min(4, len(shown))
        num_rows = math.ceil(len(shown) / num_columns)
        figure = Figure(figsize=(3.4 * num_columns, 2.4 * num_rows + 0.6), layout="constrained")
        axes = figure.subplots(num_rows, num_columns, squeeze=False).flatten().tolist()
        for axis, result in zip(axes, shown, strict=False):
            for verdict, colour, style, name in ((1, "#0b6e4f", "-", "right"), (0, "#b23a48", "--", "wrong")):
                rows = [row for row in result.curve if row["right"] == verdict and row["count"] >= least]
                axis.plot([r["length"] for r in rows], [r[column] for r in rows], style, color=colour, label=name)
            axis.axhline(0, color="0.8", linewidth=0.8, zorder=0)
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter(FormatStrFormatter("%g"))
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.tick_params(labelsize=7)
            axis.set_title(result.label, fontsize=9)
        for axis in axes[len(shown) :]:
            axis.set_visible(False)
        figure.axes[0].legend(fontsize=8, frameon=False)
        figure.supxlabel("response length (tokens)")
        figure.supylabel(title)
        written.append(folder / f"{column}_by_length.png")
        figure.savefig(written[-1], dpi=150)
    staged = [result for result in results if any("care/stage" in row for row in result.series)]
    if staged:
        figure = Figure(figsize=(7, 5), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True)
        for result in staged:
            rows = [row for row in result.series if "care/stage" in row]
            steps = [row["step"] for row in rows]
            top.plot(steps, [row["care/competence"] for row in rows], label=f"{result.label}: competence")
            top.step(steps, [row["care/stage"] / 3 for row in rows], where="post", linestyle=":", label="stage / 3")
            bottom.plot(steps, [row["length"] for row in rows], color="0.3")
        top.legend(fontsize=8, frameon=False)
        top.set_ylim(0, 1.05)
        bottom.set_ylabel("mean length (tokens)")
        bottom.set_xlabel("step")
        written.append(folder / "stage.png")
        figure.savefig(written[-1], dpi=150)
    return written


def run_replay(
    path: str | Path,
    *,
    rules: Sequence[str] = (),
    fill: Sequence[str] = (),
    out: str | Path | None = None,
    as_json: bool = False,
    tokenizer: str | None = None,
    length_unit: str = "tokens",
    correct_threshold: float = 0.1,
    norm_by_std: bool = True,
) -> None:
    """What ``verl-care replay`` does: table (or JSON) on stdout, plots in ``out``, progress on stderr.

    Args:
        path: see ``open_run``.
        rules: ``name`` or ``name:constant=value,…``; empty for every rule that needs nothing further.
        fill: ``column=value`` for columns of ``extra`` that the rollouts lack.
        out: folder for the plots; None for none.
        tokenizer: name or path of a tokenizer, for verl's dumps.

    Raises:
        ReplayError: see there.
    """
    from rich.console import Console
    from rich.progress import Progress

    console, progress_console = Console(), Console(stderr=True)
    if not console.is_terminal:
        console.width = 120
    run = open_run(path)
    filled = parse_assignments(fill)
    for name, value in filled.items():
        if not isinstance(value, int | float):
            raise ReplayError(f"--fill {name}={value}: expected a number")
    left_out: dict[str, str] = {}
    if rules:
        chosen = {spec: parse_rule(spec) for spec in rules}
    else:
        chosen, left_out = default_rules(filled)
    count_tokens = None
    if tokenizer is not None:
        from transformers import AutoTokenizer

        count_tokens = AutoTokenizer.from_pretrained(tokenizer)
    batches = read_batches(
        run, fill=filled, correct_threshold=correct_threshold, tokenizer=count_tokens, length_unit=length_unit
    )
    with Progress(console=progress_console, transient=True) as progress:
        task = progress.add_task("replaying", total=run.num_rollouts or len(run.files))

        def watched() -> Iterator[ShapingBatch]:
            for batch in batches:
                yield batch
                progress.advance(task, len(batch) if run.num_rollouts else 1)

        results = replay(watched(), chosen, norm_by_std=norm_by_std)
    plots = write_plots(results, out) if out is not None else []
    if as_json:
        print(
            json.dumps(
                {
                    "run": str(path),
                    "rules": [result.to_dict() for result in results],
                    "left_out": left_out,
                    "meaning": TOTALS,
                    "plots": [str(plot) for plot in plots],
                }
            )
        )
        return
    console.print(render_table(results))
    for name, reason in left_out.items():
        console.print(f"left out: {name} {reason}", highlight=False)
    for plot in plots:
        console.print(f"wrote {plot}", highlight=False)


def main(path: str | Path, **options: Any) -> int:
    """``run_replay`` with errors in one line on stderr; exit status 0, or 1 where the rollouts or a rule fail."""
    try:
        run_replay(path, **options)
    except ReplayError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
