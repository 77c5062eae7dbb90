"""A model of training under a shaping rule: where would its rewards lead length, accuracy and competence?

A toy, not a language model. A policy of two numbers answers prompts of fixed difficulty: response lengths are
log-normal around the first; the chance to be right grows with the second, skill, and, with falling returns, with
length; what exceeds the limit is cut and wrong. Each step samples groups, shapes their rewards with a rule of this
package, normalises them as GRPO does, and moves both numbers along the policy gradient. It tells directions, orderings
and what a constant does, no figures for a real run; its sensitivity says how far each result hangs on the model's own
parameters.

Shape suffixes: N responses, P prompts of a pool.
"""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from verl_care.replay import ReplayError, open_run, parse_assignments, parse_rule, read_batches
from verl_care.shaping import groups
from verl_care.shaping.base import Rule, ShapingBatch

WARNING = "A model, not a training run: read orderings and directions, not numbers."


@dataclass(frozen=True, kw_only=True)
class Model:
    """Parameters of the simulated policy and task.

    The defaults are chosen, not measured: with them CARE turns near step 600 and plain GRPO ends near 480 tokens.

    P(right | l, skill, d) = sigmoid(skill - d + length_gain * (1 - exp(-l / length_scale))), 0 for a cut response.
    """

    num_steps: int = 1500
    """Updates."""
    prompts_per_step: int = 16
    """Prompts an update."""
    group_size: int = 8
    """Responses a prompt."""
    num_prompts: int = 2000
    """Prompts in the pool; they come back, as over epochs."""
    max_length: float = 1200.0
    """Limit on responses in tokens."""
    initial_length: float = 208.0
    """Mean length at the start, in tokens."""
    length_spread: float = 0.5
    """Standard deviation of the log length within a prompt."""
    prompt_length_spread: float = 0.0
    """Standard deviation of what a prompt adds to the log length: harder ones get longer responses."""
    initial_skill: float = -1.75
    """Skill at the start, in logits."""
    difficulty_spread: float = 1.75
    """Standard deviation of prompt difficulty, in logits."""
    length_gain: float = 3.8
    """What unlimited length adds, in logits."""
    length_scale: float = 420.0
    """Tokens over which length pays off."""
    length_rate: float = 0.0075
    """Step of the mean log length along its natural gradient."""
    skill_rate: float = 0.007
    """Step of the skill along its gradient."""
    max_skill: float = 0.85
    """Skill that more training does not exceed."""
    norm_by_std: bool = True
    """verl's ``algorithm.norm_adv_by_std_in_grpo``."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "prompts_per_step", "group_size", "num_prompts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected an integer >= 1; got {getattr(self, name)}")
        for name in ("max_length", "initial_length", "length_spread", "length_scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a number > 0; got {getattr(self, name)}")


@dataclass
class Trajectory:
    """One simulated run, one value a step in each column."""

    label: str
    seed: int
    columns: dict[str, list[float]] = field(default_factory=dict)

    def at(self, name: str, share: float, window: int = 50) -> float:
        """Mean of a column around a share of the run, over ``window`` steps."""
        values = self.columns[name]
        middle = round(share * (len(values) - 1))
        low = min(max(0, middle - window // 2), max(0, len(values) - window))
        part = values[low : low + window]
        return sum(part) / len(part)

    def summary(self) -> dict[str, float]:
        """Start, peak and end of the run: lengths in tokens, accuracies, and when the peak was."""
        smooth = [self.at("length", i / 100) for i in range(101)]
        peak = max(range(101), key=smooth.__getitem__)
        return {
            "length_start": smooth[0],
            "length_peak": smooth[peak],
            "peak_step": peak / 100 * (len(self.columns["length"]) - 1),
            "length_end": smooth[-1],
            "accuracy_start": self.at("accuracy", 0.0),
            "accuracy_best": max(self.at("accuracy", i / 100) for i in range(101)),
            "accuracy_lowest_after_peak": min(self.at("accuracy", i / 100) for i in range(peak, 101)),
            "accuracy_end": self.at("accuracy", 1.0),
            "accuracy_mean": sum(self.columns["accuracy"]) / len(self.columns["accuracy"]),
            "competence_end": self.columns["competence"][-1],
        }


def simulate(rule: Rule, model: Model | None = None, *, seed: int = 0, label: str = "") -> Trajectory:
    """One run of the model under a rule.

    Args:
        rule: from ``get_rule``; what it reads of ``extra`` is given: targets, references and flags of no meaning here.
        model: parameters.
        seed: of everything random.
        label: name of the run.
    """
    model = Model() if model is None else model
    generator = torch.Generator().manual_seed(seed)
    difficulty_P = model.difficulty_spread * torch.randn(model.num_prompts, generator=generator)
    spread = math.hypot(model.length_spread, model.prompt_length_spread)
    mean_log, skill = math.log(model.initial_length) - spread**2 / 2, model.initial_skill
    competence = 0.6
    state: Any = rule.initial_state()
    columns: dict[str, list[float]] = {
        name: [] for name in ("length", "accuracy", "skill", "competence", "stage", "length_only_groups", "cut")
    }
    group_N = torch.arange(model.prompts_per_step).repeat_interleave(model.group_size)
    for step in range(1, model.num_steps + 1):
        prompt = torch.randint(0, model.num_prompts, (model.prompts_per_step,), generator=generator)
        difficulty_N = difficulty_P[prompt][group_N]
        shift_N = model.prompt_length_spread * difficulty_N / max(model.difficulty_spread, 1e-9)
        noise_N = model.length_spread * torch.randn(group_N.numel(), generator=generator)
        wished_N = torch.exp(mean_log + shift_N + noise_N).round().clamp(min=1)
        cut_N = wished_N > model.max_length
        length_N = wished_N.clamp(max=model.max_length)
        chance_N = chance_right(length_N, difficulty_N, skill, model)
        drawn_N = torch.rand(group_N.numel(), generator=generator) < chance_N
        right_N = drawn_N & ~cut_N
        accuracy_N = right_N.float()
        batch = ShapingBatch(
            score=accuracy_N,
            accuracy=accuracy_N,
            correct=right_N,
            length=length_N,
            group=group_N,
            prompt_key=[f"pool/{i}" for i in prompt[group_N].tolist()],
            step=step,
            norm_by_std=model.norm_by_std,
            extra=_neutral_extra(rule, length_N, model),
        )
        shaped, state = rule(batch, state)
        reward_N = accuracy_N + shaped.bonus
        advantage_N = shaped.advantage
        if advantage_N is None:
            advantage_N = groups.group_advantage(reward_N, group_N, norm_by_std=model.norm_by_std)
        # The policy's own gradient: of the log-normal by its mean, of the Bernoulli by its logit.
        mean_log += model.length_rate * float((advantage_N * noise_N).mean()) / model.length_spread
        skill += (
            model.skill_rate
            * float((advantage_N * (drawn_N.float() - chance_N)).mean())
            * (1 - math.exp(min(0.0, skill - model.max_skill)) if skill < model.max_skill else 0.0)
        )
        competence = 0.99 * competence + 0.01 * float(accuracy_N.mean())
        metrics = {**shaped.metrics, **rule.state_metrics(state)}
        columns["length"].append(float(length_N.mean()))
        columns["accuracy"].append(float(accuracy_N.mean()))
        columns["skill"].append(skill)
        columns["competence"].append(float(metrics.get("care/competence", competence)))
        columns["stage"].append(float(metrics.get("care/stage", math.nan)))
        columns["length_only_groups"].append(_length_only_share(accuracy_N, reward_N, group_N))
        columns["cut"].append(float(cut_N.float().mean()))
    return Trajectory(label or rule.name, seed, columns)


def chance_right(length_N: Tensor, difficulty_N: Tensor, skill: float, model: Model) -> Tensor:
    """P(right) of a response that is not cut, (N,)."""
    gain_N = model.length_gain * (1 - torch.exp(-length_N / model.length_scale))
    return torch.sigmoid(skill - difficulty_N + gain_N)


def _neutral_extra(rule: Rule, length_N: Tensor, model: Model) -> dict[str, Tensor]:
    values = {
        "target_length": model.initial_length,
        "ref_length": model.initial_length,
        "ref_accuracy": 0.5,
        "no_think": 0.0,
        "direct": 0.0,
    }
    return {name: torch.full_like(length_N, values[name]) for name in rule.properties.needs if name in values}


def _length_only_share(accuracy_N: Tensor, reward_N: Tensor, group_N: Tensor) -> float:
    def spread(values_N: Tensor) -> Tensor:
        return groups.group_max(values_N, group_N) - groups.group_min(values_N, group_N)

    return float(((spread(accuracy_N) == 0) & (spread(reward_N) > 1e-6)).float().mean())


# Many runs


@dataclass(frozen=True)
class Job:
    """One run to make: a rule as the command line writes it, parameters, a seed."""

    spec: str
    model: Model
    seed: int
    label: str = ""


def run_jobs(jobs: Sequence[Job], *, num_workers: int | None = None, on_done: Any = None) -> list[Trajectory]:
    """Makes the runs in parallel processes, in the order of ``jobs``.

    Args:
        num_workers: processes; None for one a core, 1 for none beside this one.
        on_done: called without arguments after each run.

    Raises:
        ReplayError: a rule that cannot be built.
    """
    num_workers = min(len(jobs), num_workers or os.cpu_count() or 1)
    results = []
    if num_workers <= 1:
        for job in jobs:
            results.append(_run_job(job))
            if on_done:
                on_done()
        return results
    # Spawned, not forked: a fork of a process whose torch has threads can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for trajectory in pool.map(_run_job, jobs, chunksize=max(1, len(jobs) // (4 * num_workers))):
            results.append(trajectory)
            if on_done:
                on_done()
    return results


def _run_job(job: Job) -> Trajectory:
    return simulate(parse_rule(job.spec), job.model, seed=job.seed, label=job.label or job.spec)


def expand_sweep(sweep: str) -> list[str]:
    """``care.concise_threshold=0.75,0.8`` as the rules ``care:concise_threshold=0.75`` and ``…=0.8``.

    Raises:
        ReplayError: not of the form rule.constant=value,value.
    """
    target, equals, values = sweep.partition("=")
    rule, dot, constant = target.partition(".")
    if not (equals and dot and rule and constant and values):
        raise ReplayError(f"--sweep {sweep}: expected rule.constant=value,value,…")
    return [f"{rule}:{constant}={value}" for value in values.split(",")]


def summarise(trajectories: Sequence[Trajectory]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds of each label's summary, in the order of first appearance."""
    by_label: dict[str, list[dict[str, float]]] = {}
    for trajectory in trajectories:
        by_label.setdefault(trajectory.label, []).append(trajectory.summary())
    rows = []
    for label, summaries in by_label.items():
        row: dict[str, Any] = {"rule": label, "seeds": len(summaries)}
        for name in summaries[0]:
            values = torch.tensor([summary[name] for summary in summaries], dtype=torch.float64)
            row[name] = float(values.mean())
            row[f"{name}_std"] = float(values.std()) if len(summaries) > 1 else None
        rows.append(row)
    return rows


SENSITIVE = (
    "length_spread",
    "initial_skill",
    "max_skill",
    "difficulty_spread",
    "length_gain",
    "length_scale",
    "length_rate",
    "skill_rate",
    "group_size",
    "prompts_per_step",
)
"""Parameters whose choice is the model's, not the rule's."""


def sensitivity_jobs(spec: str, model: Model, seeds: Sequence[int], change: float = 0.25) -> list[Job]:
    """Runs in which one parameter at a time is lower or higher by ``change`` of itself."""
    jobs = []
    for name in SENSITIVE:
        for sign in (-1, 1):
            value = getattr(model, name)
            moved = value + sign * change * abs(value)
            moved = max(2, round(moved)) if isinstance(value, int) else moved
            varied = replace(model, **{name: moved})
            jobs += [Job(spec, varied, seed, f"{name} {'+' if sign > 0 else '-'}{change:.0%}") for seed in seeds]
    return jobs


def read_model(assignments: Sequence[str]) -> Model:
    """The model with ``name=value`` parameters.

    Raises:
        ReplayError: an unknown parameter or a value that it refuses.
    """
    values = parse_assignments(assignments)
    known = {parameter.name for parameter in fields(Model)}
    for name in values:
        if name not in known:
            raise ReplayError(f"--set {name}: no such parameter; there are {', '.join(sorted(known))}")
    try:
        return Model(**values)
    except (TypeError, ValueError) as error:
        raise ReplayError(f"--set: {error}") from None


def fit_start(path: str | Path, model: Model, updates: int = 5) -> Model:
    """The model with a run's beginning in place of its own: batch, lengths and skill; how it learns stays.

    Lengths are those of the run's first updates, and with them scale the tokens over which length pays off and the
    limit; skill is what gives the run's accuracy at these lengths.

    Args:
        path: see ``verl_care.replay.open_run``.
        model: parameters that a run does not show.
        updates: how many of the first updates are read.

    Raises:
        ReplayError: no rollouts there.
    """
    batches = list(itertools.islice(read_batches(open_run(path)), updates))
    length_N = torch.cat([batch.length for batch in batches]).clamp(min=1)
    accuracy = float(torch.cat([batch.accuracy for batch in batches]).mean())
    # A group of one has no spread of its own; it then stands in for all.
    group_N = torch.cat([batch.group + 10**6 * i for i, batch in enumerate(batches)])
    index_N, num_groups = groups.index_groups(group_N)
    log_N = length_N.log()
    within_N = log_N - groups.mean(log_N, index_N, num_groups)[index_N]
    degrees = max(1, len(log_N) - num_groups)
    mean_length = float(length_N.mean())
    factor = mean_length / model.initial_length
    fitted = replace(
        model,
        prompts_per_step=max(1, num_groups // len(batches)),
        group_size=max(2, round(len(length_N) / num_groups)),
        initial_length=mean_length,
        length_spread=max(0.05, math.sqrt(float(within_N.square().sum()) / degrees)),
        length_scale=model.length_scale * factor,
        max_length=model.max_length * factor,
    )
    return replace(fitted, initial_skill=_skill_for(min(max(accuracy, 0.01), 0.99), fitted))


def _skill_for(accuracy: float, model: Model) -> float:
    """Skill at which the model's mean accuracy is this one, by bisection over one draw of prompts and lengths."""
    generator = torch.Generator().manual_seed(0)
    spread = math.hypot(model.length_spread, model.prompt_length_spread)
    normal_N, difficulty_N = torch.randn(2, 20_000, generator=generator)
    length_N = torch.exp(math.log(model.initial_length) - spread**2 / 2 + spread * normal_N)
    low, high = -20.0, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        right_N = chance_right(length_N, model.difficulty_spread * difficulty_N, middle, model)
        low, high = (middle, high) if float(right_N.mean()) < accuracy else (low, middle)
    return (low + high) / 2


# Showing


def render_summary(rows: Sequence[Mapping[str, Any]], title: str) -> Any:
    """Summaries as a rich table."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, caption=WARNING, box=SIMPLE_HEAD)
    table.add_column("run", overflow="fold")
    for head in ("length\nstart", "peak", "at\nstep", "end", "accuracy\nstart", "best", "end", "competence\nend"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        cells = []
        for name in ("length_start", "length_peak", "peak_step", "length_end"):
            spread = row[f"{name}_std"]
            cells.append(f"{row[name]:.0f}" + (f"±{spread:.0f}" if spread is not None else ""))
        for name in ("accuracy_start", "accuracy_best", "accuracy_end", "competence_end"):
            spread = row[f"{name}_std"]
            cells.append(f"{row[name]:.2f}" + (f"±{spread:.2f}" if spread is not None else ""))
        table.add_row(row["rule"], *cells)
    return table


def write_figure(trajectories: Sequence[Trajectory], path: str | Path) -> Path:
    """PNG: length, accuracy and competence over the steps, mean and range over the seeds, one line a rule."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    by_label: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories:
        by_label.setdefault(trajectory.label, []).append(trajectory)
    figure = Figure(figsize=(8, 8.4), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True)
    colours = colormaps["tab10" if len(by_label) <= 10 else "tab20"].colors
    for colour, (label, runs) in zip(colours * 9, by_label.items(), strict=False):
        for axis, name in zip(axes, ("length", "accuracy", "competence"), strict=True):
            smooth = torch.stack([_smooth(run.columns[name]) for run in runs])
            steps = range(1, smooth.shape[1] + 1)
            axis.plot(steps, smooth.mean(0).tolist(), color=colour, label=label, linewidth=1.6)
            low, high = smooth.min(0).values.tolist(), smooth.max(0).values.tolist()
            axis.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    for axis, name in zip(axes, ("mean length (tokens)", "accuracy", "competence"), strict=True):
        axis.set_ylabel(name)
        axis.spines[["top", "right"]].set_visible(False)
    for threshold in (0.65, 0.70, 0.75):
        axes[2].axhline(threshold, color="0.7", linewidth=0.8, linestyle=":", zorder=0)
    axes[0].legend(fontsize=8, frameon=False, ncols=2)
    axes[2].set_xlabel("step")
    figure.suptitle(WARNING, fontsize=9, color="0.35")
    figure.savefig(path, dpi=150)
    return path


def _smooth(values: Sequence[float], window: int = 25) -> Tensor:
    # Edges average over the part of the window that exists.
    total = torch.cat([torch.zeros(1, dtype=torch.float64), torch.tensor(values, dtype=torch.float64).cumsum(0)])
    centre = torch.arange(len(values))
    low, high = (centre - window // 2).clamp(min=0), (centre + window // 2 + 1).clamp(max=len(values))
    return (total[high] - total[low]) / (high - low)


DEFAULT_RULES = ("care", "none", "video_r1_band", "kimi_k1_5:weight=0.1,gate=right_only")
"""CARE, plain GRPO, and the two kinds of rule with one direction only."""


def run_simulation(
    *,
    rules: Sequence[str] = (),
    sweeps: Sequence[str] = (),
    parameters: Sequence[str] = (),
    like: str | Path | None = None,
    num_seeds: int = 3,
    num_workers: int | None = None,
    sensitivity: bool = True,
    figure: str | Path | None = None,
    as_json: bool = False,
) -> None:
    """What ``verl-care simulate`` does: table (or JSON) on stdout, a figure, progress on stderr.

    Args:
        rules: as for a replay; empty for ``DEFAULT_RULES`` or, with sweeps, for none.
        sweeps: ``rule.constant=value,value,…``.
        parameters: ``name=value`` of ``Model``.
        like: a run whose beginning the model takes over; None for the model's own.
        num_seeds: runs of each rule, seeds from 0.
        num_workers: processes.
        sensitivity: also varies the model's own parameters, for the first rule.
        figure: PNG to write.

    Raises:
        ReplayError: a rule, a sweep or a parameter that does not exist.
    """
    from rich.console import Console
    from rich.progress import Progress

    model = read_model(parameters)
    if like is not None:
        model = fit_start(like, model)
    specs = list(rules) or ([] if sweeps else list(DEFAULT_RULES))
    for sweep in sweeps:
        specs += expand_sweep(sweep)
    for spec in specs:
        parse_rule(spec)
    seeds = range(num_seeds)
    jobs = [Job(spec, model, seed) for spec in specs for seed in seeds]
    extra = sensitivity_jobs(specs[0], model, seeds) if sensitivity else []
    console = Console()
    if not console.is_terminal:
        console.width = 120
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("simulating", total=len(jobs) + len(extra))
        done = run_jobs(jobs + extra, num_workers=num_workers, on_done=lambda: progress.advance(task))
    trajectories, varied = done[: len(jobs)], done[len(jobs) :]
    rows, varied_rows = summarise(trajectories), summarise(varied)
    if figure is not None:
        write_figure(trajectories, figure)
    if as_json:
        columns = ("length", "accuracy", "competence", "stage", "length_only_groups", "cut")
        result = {
            "warning": WARNING,
            "model": {parameter.name: getattr(model, parameter.name) for parameter in fields(Model)},
            "rules": rows,
            "sensitivity": {"rule": specs[0], "runs": varied_rows} if sensitivity else None,
            "runs": [
                {
                    "rule": run.label,
                    "seed": run.seed,
                    **{n: [None if math.isnan(v) else round(v, 6) for v in run.columns[n]] for n in columns},
                }
                for run in trajectories
            ],
        }
        print(json.dumps(result))
        return
    console.print(render_summary(rows, f"Simulated training, {num_seeds} seeds, {model.num_steps} steps"))
    if sensitivity:
        console.print(render_summary(varied_rows, f"Sensitivity of {specs[0]} to the model's own parameters"))
        ranges = []
        figures = (("length_peak", "peak", 0), ("peak_step", "at step", 0), ("length_end", "end", 0))
        for name, text, digits in (*figures, ("accuracy_end", "accuracy", 2)):
            values = [row[name] for row in varied_rows]
            ranges.append(f"{text} {min(values):.{digits}f} to {max(values):.{digits}f}")
        console.print(f"Over these parameters: {', '.join(ranges)}.", highlight=False)
    if figure is not None:
        console.print(f"wrote {figure}", highlight=False)


def main(**options: Any) -> int:
    """``run_simulation`` with errors in one line on stderr; exit status 0, or 1 where it fails."""
    try:
        run_simulation(**options)
    except ReplayError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
