"""The inverted U, for real: trains a tiny video model through verl's ``main_ppo`` under several length rewards.

    python benchmarks/inverted_u.py                          # all arms and seeds; goes on where it was stopped
    python benchmarks/inverted_u.py --arms care naive --seeds 0
    python benchmarks/inverted_u.py --quick                  # two steps of one arm: does it run?
    python benchmarks/inverted_u.py --summary-only           # of what is there

Task and model: ``verl_care.data.tally``. Prints one JSON line; with all arms, exit status 1 where a run fails. What
came out, and what the constants are: ``docs/study.md``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from verl_care import launch
from verl_care.data import tally
from verl_care.report.curves import ACCURACY, COMPETENCE, LENGTH, STAGE, Curve, read_metrics

STEPS = 140
PROMPTS_PER_STEP = 8

# Fixed before any seed ran. Of CARE's constants two differ from the published ones: the floor of the reference length
# (300 tokens would make every effort ratio about 0.1) and, for time, no temporal contrast (its bonus is constant over
# the right answers of a group).
COMMON = (
    "+recipe@_global_=care_demo",
    "care.contrast.enabled=false",
    "care.shaping.ema_decay=0.99",
    "care.shaping.length_floor_tokens=16",
    f"data.train_batch_size={PROMPTS_PER_STEP}",
    "data.max_prompt_length=80",
    "data.max_response_length=44",
    "actor_rollout_ref.rollout.n=8",
    "actor_rollout_ref.actor.optim.lr=2e-4",
    "actor_rollout_ref.actor.loss_agg_mode=token-mean",
    # One update a step: the log-probs of the rollout are those of the policy that is updated, so no pass for them.
    "algorithm.rollout_correction.bypass_mode=true",
    "actor_rollout_ref.rollout.custom.batch_window_ms=200",
    "care.poll_interval=0.02",
    "trainer.val_before_train=false",
    "trainer.test_freq=-1",
    "trainer.save_freq=-1",
    "trainer.logger=[file]",
)
SEQUENCE_MEAN = "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean"
ARMS: dict[str, tuple[str, ...]] = {
    "care": (),
    "naive": ("reward.reward_manager.name=naive",),
    "static_long": ("care=static_long",),
    "static_short": ("care=static_short",),
    "clock": ("care=clock", f"care.shaping.clock_step={round(0.4 * STEPS) + 1}"),
    "kimi": ("reward.reward_manager.name=kimi_k1_5",),
    # The band of 320 to 512 tokens, by the factor 16 / 300 of the floor.
    "video_r1_band": (
        "reward.reward_manager.name=video_r1_band",
        "+care.rules.video_r1_band={min_length:17,max_length:27}",
    ),
    "care_hysteresis": ("care=hysteresis",),
    "care_decoupled": ("care=decoupled",),
    "care_blend": ("care=blend",),
    "care_seq_mean": (SEQUENCE_MEAN,),
    "naive_seq_mean": (SEQUENCE_MEAN, "reward.reward_manager.name=naive"),
}
QUESTION = ("care", "naive", "static_long", "static_short", "clock", "care_decoupled")
"""Arms that tell whether routing by competence pays; they share a panel."""
MANY_SEEDS = ("care", "naive")
"""Arms that run with five seeds; the others with three."""
STUDENT_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantiles of Student's t for 1 to 9 degrees of freedom."""
BEST_TOKENS = 2 * tally.MEAN_EVENTS + 6
WINDOW = 10


def plan(arms: Sequence[str], seeds: Sequence[int] | None) -> list[tuple[str, int]]:
    """The runs in their order: every arm with one seed before any with the next."""
    wanted = range(5) if seeds is None else seeds
    return [
        (arm, seed) for seed in wanted for arm in arms if seeds is not None or seed < (5 if arm in MANY_SEEDS else 3)
    ]


def train(arm: str, seed: int, out_dir: Path, steps: int, size: tally.Size, console: Console) -> dict[str, Any]:
    """One run; its figures are kept in ``result.json`` and read from there the next time.

    Raises:
        RuntimeError: main_ppo failed; names the log.
    """
    folder = out_dir / f"{arm}_seed{seed}"
    kept = folder / "result.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    assets = out_dir / f"assets_seed{seed}"

    def on_progress(part: str, done: int, total: int) -> None:
        if done == total:
            console.print(f"assets of seed {seed}: {part}, {total}")

    built = tally.build_folder(assets, seed=seed, size=size, on_progress=on_progress)
    folder.mkdir(parents=True, exist_ok=True)
    metrics, log = folder / "metrics.jsonl", folder / "train.log"
    metrics.unlink(missing_ok=True)
    overrides = [
        *COMMON,
        f"data.train_files={assets}/train.parquet",
        f"data.val_files={assets}/train.parquet",
        f"actor_rollout_ref.model.path={assets}/model",
        f"data.care_video.cache_dir={assets}/frames",
        f"data.seed={seed}",
        f"actor_rollout_ref.rollout.custom.seed={seed}",
        f"trainer.total_training_steps={steps}",
        f"trainer.default_local_dir={folder}",
        f"hydra.run.dir={folder}/hydra",
        *ARMS[arm],
    ]
    environ = {"VERL_FILE_LOGGER_PATH": str(metrics), "OMP_NUM_THREADS": "1"}
    started, shown = time.perf_counter(), 0

    def show() -> None:
        nonlocal shown
        curve = read_metrics(metrics) if metrics.exists() else Curve([], [])
        if curve.steps and curve.steps[-1] >= shown + 10:
            shown = curve.steps[-1]
            length, accuracy = (curve.series(name)[1][-1] for name in (LENGTH, ACCURACY))
            minutes = (time.perf_counter() - started) / 60
            console.print(f"{arm} seed {seed}, step {shown}: {length:.1f} tokens, {accuracy:.2f}, {minutes:.1f} min")

    with launch.main_ppo(overrides, log=log, environ=environ) as process:
        status = launch.wait(process, show, interval_seconds=5)
    if status != 0:
        raise RuntimeError(f"{arm}, seed {seed}: main_ppo ended with status {status}; everything it printed: {log}")
    curve = read_metrics(metrics)
    result = {
        "arm": arm,
        "seed": seed,
        "steps": steps,
        "minutes": round((time.perf_counter() - started) / 60, 1),
        "accuracy_at_pairs": built["accuracy"],
        "length": curve.series(LENGTH)[1],
        "accuracy": curve.series(ACCURACY)[1],
        "competence": curve.series(COMPETENCE)[1],
        "stage": curve.series(STAGE)[1],
    }
    partial = kept.with_suffix(".partial")
    partial.write_text(json.dumps(result), encoding="utf-8")
    os.replace(partial, kept)
    return result


def figures(result: dict[str, Any]) -> dict[str, float | None]:
    """Of one run: lengths and accuracies over windows of ten steps, and the lowest one once brevity is rewarded.

    Brevity is rewarded from the first step in refine or concise on; None for an arm that has no stages, and for one
    that begins there.
    """
    length, accuracy, stage = result["length"], result["accuracy"], result["stage"]
    window = min(WINDOW, len(length))
    means = [statistics.fmean(length[i : i + window]) for i in range(len(length) - window + 1)]
    rates = [statistics.fmean(accuracy[i : i + window]) for i in range(len(accuracy) - window + 1)]
    switch = next((i for i, value in enumerate(stage) if value >= 2), None)
    after = rates[switch:] if switch else []
    return {
        # Step 1 answers with the weights of the warm start.
        "length_start": length[0],
        "length_peak": max(means),
        "length_end": means[-1],
        "accuracy_start": accuracy[0],
        "accuracy_end": rates[-1],
        "switch_step": switch + 1 if switch else None,
        "accuracy_lowest_after_switch": min(after) if after else None,
    }


def interval(differences: Sequence[float]) -> tuple[float, list[float] | None]:
    """Mean of paired differences and its 95 % interval by Student's t; None for fewer than two."""
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return mean, None
    quantile = STUDENT_975[min(len(differences) - 1, len(STUDENT_975)) - 1]
    half = quantile * statistics.stdev(differences) / math.sqrt(len(differences))
    return mean, [round(mean - half, 4), round(mean + half, 4)]


def summarise(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean figures an arm, and whether CARE reaches what was set beforehand, seed by seed."""
    by_arm: dict[str, dict[int, dict[str, Any]]] = {}
    for result in results:
        by_arm.setdefault(result["arm"], {})[result["seed"]] = figures(result)
    arms = {}
    for arm, runs in by_arm.items():
        arms[arm] = {"seeds": sorted(runs)} | {
            name: [None if (value := runs[seed][name]) is None else round(value, 3) for seed in sorted(runs)]
            for name in next(iter(runs.values()))
        }
    summary: dict[str, Any] = {"benchmark": "inverted_u", "best_tokens": BEST_TOKENS, "arms": arms}
    care = by_arm.get("care", {})
    if care:
        summary["rises"] = {seed: run["length_peak"] >= 1.5 * run["length_start"] for seed, run in care.items()}
    static = by_arm.get("static_long", {})
    if shared := sorted(care.keys() & static.keys()):
        summary["ends_short"] = {seed: care[seed]["length_end"] <= 0.6 * static[seed]["length_end"] for seed in shared}
    for other in by_arm:
        shared = sorted(care.keys() & by_arm[other].keys())
        if other != "care" and shared:
            gains = [care[seed]["accuracy_end"] - by_arm[other][seed]["accuracy_end"] for seed in shared]
            mean, bounds = interval(gains)
            arms[other]["care_minus_this"] = {"accuracy": round(mean, 4), "interval": bounds}
    return summary


def draw(results: Sequence[dict[str, Any]], path: Path) -> Path:
    """PNG: length and accuracy over the steps, smoothed over five: the mean of an arm's seeds, thin lines for each.

    The arms that the question is about on the left, all others, with care to compare, on the right.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    from verl_care.report.curves import moving_mean

    figure = Figure(figsize=(12, 7), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey="row", squeeze=False)
    others = [arm for arm in ARMS if arm not in QUESTION]
    above = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 4, "fontsize": "small", "frameon": False}
    for column, shown in enumerate((QUESTION, ("care", *others))):
        for colour, arm in zip(colormaps["tab10"].colors, shown, strict=False):
            runs = [result for result in results if result["arm"] == arm]
            for axis, name in zip(panels[:, column], ("length", "accuracy"), strict=True):
                lines = [moving_mean(run[name], 5) for run in runs]
                for line in lines:
                    axis.plot(range(1, len(line) + 1), line, color=colour, linewidth=0.6, alpha=0.4)
                if lines:
                    mean = [statistics.fmean(values) for values in zip(*lines, strict=True)]
                    label = f"{arm} ({len(lines)})"
                    axis.plot(range(1, len(mean) + 1), mean, color=colour, linewidth=2, label=label)
        panels[0, column].axhline(BEST_TOKENS, color="grey", linewidth=0.8, linestyle=":")
        if panels[0, column].get_legend_handles_labels()[0]:
            panels[0, column].legend(**above)
        panels[1, column].set_xlabel("step")
    panels[0, 0].set_ylabel("tokens a response")
    panels[1, 0].set_ylabel("accuracy")
    figure.suptitle("mean over the seeds (their number in brackets), each seed thin", fontsize="small", color="0.35")
    figure.savefig(path, dpi=120)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="ARM")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: five for care and naive, three for the others")
    parser.add_argument("--out-dir", type=Path, default=Path("outputs/inverted_u"))
    parser.add_argument("--quick", action="store_true", help="two steps of care after a short warm start")
    parser.add_argument("--summary-only", action="store_true", help="train nothing")
    args = parser.parse_args()
    out_dir, steps, size, runs = args.out_dir.resolve(), STEPS, tally.Size(), plan(args.arms, args.seeds)
    if args.quick:
        out_dir, steps, runs = out_dir / "quick", 2, [("care", 0)]
        size = tally.Size(train_clips=16, warm_clips=16, held_out_clips=8, warm_steps=30)
    # Standard output is for the one JSON line.
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    results = []
    try:
        for arm, seed in runs:
            kept = out_dir / f"{arm}_seed{seed}" / "result.json"
            if kept.exists() or not args.summary_only:
                results.append(train(arm, seed, out_dir, steps, size, console))
    except RuntimeError as error:
        console.print(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        console.print("interrupted; nothing is left running, and the same command goes on from the last whole run")
        return 130
    if not results:
        console.print(f"error: no finished run in {out_dir}")
        return 1
    print(json.dumps(summarise(results)))
    draw(results, out_dir / "inverted_u.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
