"""``verl-care calibrate``: what CARE's constants mean for a start checkpoint, before a run is paid for.

Takes a few hundred prompts with several responses each, sampled from the checkpoint or read from the first updates of a
run, and works out when the competence would cross each threshold. The policy is taken as it is: training makes it
better, so thresholds are crossed earlier than predicted here, or at all.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from verl_care.commands import run_command
from verl_care.config import STAGES, CareConfig

SHARES = (0.125, 0.25, 0.375)
"""The published thresholds 0.65, 0.70 and 0.75 as shares of the way from the published start, 0.60, to 1."""
MEMORY_SHARE = 0.1
"""Share of the run that the suggested λ remembers, 1 / (1 - λ) steps."""
NOISE_SHARE = 0.25
"""The competence's own sampling noise is to stay below this share of the distance between two thresholds."""
AT_ONCE = 0.05
"""Share of the run before which reaching concise counts as at once."""


class CalibrationError(ValueError):
    """Nothing to calibrate on; the message says what is missing."""


@dataclass(frozen=True)
class Rollout:
    """One response of the start checkpoint."""

    prompt: str
    """Name of its prompt, the same for all responses to it."""
    accuracy: float
    """Task accuracy in [0, 1]."""
    length: float
    """Response length in tokens, EOS included."""
    cut: bool = False
    """Whether it ended at the length limit; False where that is not known."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was measured, what follows for a planned run, and what to set."""

    prompts: int
    responses: int
    pass_rate: float
    """Mean over the prompts of their pass rates."""
    pass_rate_error: float
    """Its standard error, over prompts."""
    all_right: float
    """Share of prompts with only right responses."""
    all_wrong: float
    """Share of prompts with none."""
    length_mean: float
    length_p50: float
    length_p90: float
    length_correct: float | None
    """Mean over right responses; None without one."""
    cut: float
    """Share of responses that ended at the limit."""
    steps: int
    """Steps of the planned run."""
    prompts_per_step: int
    competence_end: float
    """Competence after those steps at this pass rate."""
    threshold_steps: dict[str, int | None]
    """Step at which each stage after the first begins at this pass rate; None: never."""
    threshold_pass_rates: dict[str, float]
    """Constant pass rate at which each stage begins at the run's last step; above 1: out of reach."""
    competence_noise: float
    """Standard deviation of the competence by sampling alone, once it has settled."""
    suggested: dict[str, float]
    """Constants by their names in ``care.shaping``."""
    warnings: tuple[str, ...]

    def overrides(self) -> list[str]:
        """The suggestion as Hydra overrides."""
        return [f"care.shaping.{name}={value:g}" for name, value in self.suggested.items()]


def steps_to(threshold: float, start: float, pass_rate: float, decay: float) -> int | None:
    """First step with P_t >= threshold, where P_t = p + (P_0 - p) λ^t; None if there is none.

    Args:
        threshold: in [0, 1].
        start: P_0, competence before the first update.
        pass_rate: p, the same at every step.
        decay: λ of one update, in [0, 1].
    """
    if start >= threshold and pass_rate >= threshold:
        return 1
    if pass_rate <= threshold:
        # P moves towards the pass rate and never arrives; from above it may stand over the threshold at first.
        return 1 if pass_rate + (start - pass_rate) * decay >= threshold else None
    if decay == 0:
        return 1
    if decay == 1:
        return None
    return max(1, math.ceil(math.log((pass_rate - threshold) / (pass_rate - start)) / math.log(decay) - 1e-9))


def pass_rate_needed(threshold: float, start: float, decay: float, steps: int) -> float:
    """Constant pass rate with P at the threshold after ``steps`` updates: (T - P_0 λ^n) / (1 - λ^n); inf for λ = 1."""
    kept = decay**steps
    return math.inf if kept == 1 else (threshold - start * kept) / (1 - kept)


def decay_for_noise(step_deviation: float, noise: float) -> float:
    """λ at which the average of independent values with this deviation settles to ``noise``.

    The variance of the average is (1 - λ) / (1 + λ) of the values' own.
    """
    ratio = min(1.0, (noise / step_deviation) ** 2) if step_deviation > 0 else 1.0
    return (1 - ratio) / (1 + ratio)


def calibrate(
    rollouts: Sequence[Rollout], config: CareConfig | None = None, *, steps: int = 1000, prompts_per_step: int = 256
) -> Calibration:
    """Works out what a run from this checkpoint would do at first.

    Args:
        rollouts: several responses each of some prompts.
        config: the constants that would be used; the published ones by default.
        steps: planned optimisation steps.
        prompts_per_step: planned prompts a step, ``data.train_batch_size``.

    Raises:
        CalibrationError: no rollouts.
    """
    import numpy as np

    config = CareConfig() if config is None else config
    if not rollouts:
        raise CalibrationError("no rollouts to calibrate on")
    by_prompt: dict[str, list[float]] = {}
    for rollout in rollouts:
        by_prompt.setdefault(rollout.prompt, []).append(rollout.accuracy)
    rates = np.array([np.mean(values) for values in by_prompt.values()])
    lengths = np.array([rollout.length for rollout in rollouts], dtype=float)
    correct = lengths[[rollout.accuracy > config.correct_threshold for rollout in rollouts]]
    pass_rate = float(rates.mean())
    spread = float(rates.std(ddof=1)) if len(rates) > 1 else 0.0

    per_prompt = config.ema_per == "prompt"
    decay = config.ema_decay ** (prompts_per_step / config.ema_prompts) if per_prompt else config.ema_decay
    start = config.initial_competence
    names = dict(zip(STAGES[1:], config.thresholds, strict=True))
    reached = {name: steps_to(threshold, start, pass_rate, decay) for name, threshold in names.items()}
    deviation = spread / math.sqrt(prompts_per_step)
    noise = deviation * math.sqrt((1 - decay) / (1 + decay))
    suggested = _suggest(pass_rate, deviation, correct, steps, prompts_per_step, config)
    end = pass_rate + (start - pass_rate) * decay**steps
    needed = {name: pass_rate_needed(threshold, start, decay, steps) for name, threshold in names.items()}
    measured = {
        "pass_rate": pass_rate,
        "pass_rate_error": spread / math.sqrt(len(rates)),
        "all_right": float(np.mean(rates > 1 - 1e-6)),
        "all_wrong": float(np.mean(rates < 1e-6)),
        "length_mean": float(lengths.mean()),
        "length_p50": float(np.quantile(lengths, 0.5)),
        "length_p90": float(np.quantile(lengths, 0.9)),
        "length_correct": float(correct.mean()) if len(correct) else None,
        "cut": float(np.mean([rollout.cut for rollout in rollouts])),
        "competence_noise": noise,
    }
    return Calibration(
        prompts=len(rates),
        responses=len(rollouts),
        steps=steps,
        prompts_per_step=prompts_per_step,
        competence_end=end,
        threshold_steps=reached,
        threshold_pass_rates=needed,
        suggested=suggested,
        warnings=_warn(measured, reached, needed, steps, config),
        **measured,  # type: ignore[arg-type]
    )


def _suggest(
    pass_rate: float, deviation: float, correct: Any, steps: int, prompts_per_step: int, config: CareConfig
) -> dict[str, float]:
    explore, refine, concise = (pass_rate + share * (1 - pass_rate) for share in SHARES)
    gap = (concise - explore) / 2
    memory = 1 - 1 / max(1.0, MEMORY_SHARE * steps)
    decay = min(0.99, max(memory, decay_for_noise(deviation, NOISE_SHARE * gap)))
    if config.ema_per == "prompt":
        decay **= config.ema_prompts / prompts_per_step
    suggested = {
        "initial_competence": round(pass_rate, 3),
        "explore_threshold": round(explore, 3),
        "refine_threshold": round(refine, 3),
        "concise_threshold": round(concise, 3),
        "anchor": round(refine, 3),
        "ema_decay": round(decay, 5),
    }
    if len(correct):
        # The reference length then sinks until right answers are 1 / ω of today's, and no further.
        suggested["length_floor_tokens"] = float(max(1, round(float(correct.mean()))))
    return suggested


def _warn(
    measured: dict[str, Any],
    reached: dict[str, int | None],
    needed: dict[str, float],
    steps: int,
    config: CareConfig,
) -> tuple[str, ...]:
    warnings = []
    explore, concise = reached["explore"], reached["concise"]
    if explore is None or explore > steps:
        rate = needed["explore"]
        what = "no pass rate does within so few steps" if rate > 1 else f"a mean of {rate:.2f} over the run does"
        warnings.append(
            f"never leaves explore-hard: at a pass rate of {measured['pass_rate']:.2f} the competence stays below "
            f"{config.explore_threshold:g} for all {steps} steps; {what}"
        )
    if concise is not None and concise <= max(1, AT_ONCE * steps):
        warnings.append(
            f"concise at once: step {concise} of {steps}; brevity is rewarded before anything longer was explored"
        )
    correct = measured["length_correct"]
    if correct is not None and config.length_scale * correct < config.length_floor_tokens / 2:
        warnings.append(
            f"length_floor_tokens={config.length_floor_tokens:g} is more than twice the reference length "
            f"({config.length_scale:g} x {correct:.0f}): every effort ratio is small and length hardly matters"
        )
    gap = min(high - low for low, high in zip(config.thresholds, config.thresholds[1:], strict=False))
    if measured["competence_noise"] > NOISE_SHARE * gap:
        warnings.append(
            f"the competence jitters by {measured['competence_noise']:.3f} through sampling alone, thresholds are "
            f"{gap:g} apart: raise ema_decay, or data.train_batch_size"
        )
    if measured["all_right"] + measured["all_wrong"] > 0.5:
        warnings.append(
            f"{measured['all_right']:.0%} of the prompts are all right and {measured['all_wrong']:.0%} all wrong: "
            "there correctness gives no gradient; consider verl-care select"
        )
    if measured["cut"] > 0.1:
        warnings.append(f"{measured['cut']:.0%} of the responses end at the length limit; lengths are underestimated")
    return tuple(warnings)


# Where rollouts come from


def rollouts_of_run(path: str | Path, prompts: int, first_step: int = 0) -> list[Rollout]:
    """The first rollouts of a run: whole updates until there are so many prompt groups.

    Args:
        path: see ``verl_care.replay.open_run``.
        prompts: groups wanted.
        first_step: earlier updates are left out.

    Raises:
        ReplayError: no rollouts there, or broken ones.
        CalibrationError: none from that step on.
    """
    from verl_care.replay import open_run, read_batches

    found: list[Rollout] = []
    groups = 0
    for batch in read_batches(open_run(path)):
        if batch.step < first_step:
            continue
        # A prompt that comes back later is another group: the policy has changed.
        names = [f"{batch.step}/{group}" for group in batch.group.tolist()]
        columns = zip(names, batch.accuracy.tolist(), batch.length.tolist(), strict=True)
        found += [Rollout(*values) for values in columns]
        groups += len(set(names))
        if groups >= prompts:
            break
    if not found:
        raise CalibrationError(f"{path}: no rollouts from step {first_step} on")
    return found


def rollouts_of_model(config: Any, prompts: int, seed: int, on_progress: Any) -> list[Rollout]:
    """Samples a model on some records, drawn at random; what was asked before is not asked again.

    Args:
        config: a ``SelectConfig`` with an engine: data, folder, answers a record and how they are sampled.
        prompts: records to draw; all where there are fewer.
        seed: of the draw.
        on_progress: told answers there, answers wanted, and failed ones.

    Raises:
        CalibrationError: no request was answered.
        DataError, EvaluationError: see ``verl_care.evaluation.select_records.run_selection``.
    """
    from verl_care.evaluation.asking import ANSWERS, asking
    from verl_care.evaluation.interface import TRUNCATED, Completion
    from verl_care.evaluation.items import read_benchmarks
    from verl_care.evaluation.select_records import score_runs

    items = sorted((item for bench in read_benchmarks(config.data) for item in bench.items), key=lambda item: item.key)
    drawn = random.Random(seed).sample(items, min(prompts, len(items)))
    with asking(config, on_progress=on_progress, expected=len(drawn) * config.runs) as engine:
        generated = engine([request for item in drawn for request in config.requests(item)])
    found = []
    for place, item in enumerate(drawn):
        mine = [out for out in generated[place * config.runs :][: config.runs] if isinstance(out, Completion)]
        accuracies = score_runs(item, [out.text for out in mine], config.scoring).acc
        for out, accuracy in zip(mine, accuracies, strict=True):
            if out.num_tokens is None:
                raise CalibrationError("the engine does not say how many tokens it generated")
            found.append(Rollout(item.key, accuracy, float(out.num_tokens), out.finish_reason == TRUNCATED))
    if not found:
        raise CalibrationError(
            f"none of {len(generated)} requests was answered; {Path(config.out_dir) / ANSWERS} says why"
        )
    return found


# Showing


def render(result: Calibration, config: CareConfig) -> Any:
    """The calibration as rich tables."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table

    measured = Table(title=f"{result.prompts} prompts, {result.responses} responses", box=SIMPLE_HEAD)
    measured.add_column("measured")
    measured.add_column("", justify="right")
    correct = "none is right" if result.length_correct is None else f"{result.length_correct:.0f}"
    for name, value in (
        ("pass rate", f"{result.pass_rate:.3f} ± {result.pass_rate_error:.3f}"),
        ("prompts all right / all wrong", f"{result.all_right:.0%} / {result.all_wrong:.0%}"),
        ("tokens: mean, median, p90", f"{result.length_mean:.0f}, {result.length_p50:.0f}, {result.length_p90:.0f}"),
        ("tokens of right answers, mean", correct),
        ("ended at the limit", f"{result.cut:.0%}"),
    ):
        measured.add_row(name, value)
    predicted = Table(
        title=f"competence over {result.steps} steps of {result.prompts_per_step} prompts, at this pass rate",
        caption=f"ends at {result.competence_end:.3f}; a policy that learns is faster",
        box=SIMPLE_HEAD,
    )
    for head in ("stage", "from", "begins at step", "needs a mean pass rate of"):
        predicted.add_column(head, justify="left" if head == "stage" else "right")
    for name, threshold in zip(STAGES[1:], config.thresholds, strict=True):
        step, rate = result.threshold_steps[name], result.threshold_pass_rates[name]
        when = "never" if step is None else str(step) if step <= result.steps else f"{step} (after the run)"
        predicted.add_row(name, f"{threshold:g}", when, f"{rate:.2f}" if rate <= 1 else "out of reach")
    return Group(measured, predicted)


def main(
    make_rollouts: Any,
    config: CareConfig,
    *,
    steps: int,
    prompts_per_step: int,
    as_json: bool,
) -> int:
    """What ``verl-care calibrate`` does with rollouts that ``make_rollouts()`` gives.

    Returns:
        Exit status: 0; 1 where there is nothing to calibrate on; 130 after Ctrl-C.
    """
    from verl_care.evaluation.recorded import EvaluationError

    def work() -> None:
        report(calibrate(make_rollouts(), config, steps=steps, prompts_per_step=prompts_per_step), config, as_json)

    return run_command(work, EvaluationError)


def report(result: Calibration, config: CareConfig, as_json: bool) -> None:
    """Prints a calibration with its warnings and suggestions."""
    from rich.console import Console

    if as_json:
        finite = {name: rate if math.isfinite(rate) else None for name, rate in result.threshold_pass_rates.items()}
        print(json.dumps({**asdict(result), "threshold_pass_rates": finite, "overrides": result.overrides()}))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    console.print(render(result, config))
    for warning in result.warnings:
        console.print(f"warning: {warning}", markup=False, soft_wrap=True)
    console.print("suggested, by the published proportions (add to the command line):", markup=False)
    console.print("  " + " ".join(result.overrides()), markup=False, soft_wrap=True)
