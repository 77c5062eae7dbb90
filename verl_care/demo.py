"""`verl-care demo`: builds the demo's assets, runs verl's own `main_ppo` on them, shows the curve."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from verl_care import launch
from verl_care.data import demo as assets
from verl_care.report.curves import ACCURACY, COMPETENCE, LENGTH, Curve, draw_curves, read_metrics

STARTING = "starting verl, Ray and the rollout engine (about a minute)"


def run_demo(
    *,
    steps: int = 50,
    engine: str = "hf",
    manager: str = "care",
    video_dir: Path | None = None,
    out_dir: Path | None = None,
    seed: int = 0,
    assets_only: bool = False,
    overrides: Sequence[str] = (),
) -> int:
    """Make the demo's assets, train on them through `verl.trainer.main_ppo`, and print where the results are.

    Args:
        steps: optimisation steps, at least 1.
        engine: rollout engine, "hf" or "vllm".
        manager: name of the reward manager ("care", "naive", "dapo", ...).
        video_dir: folder with your own .mp4 files; they become the clips. None: clips are drawn.
        out_dir: folder for log, metrics, rollout log, checkpoint and curve. None: `./outputs/care_demo/<date>`.
        seed: seed of assets and run.
        assets_only: stop once the assets stand.
        overrides: further Hydra overrides for `main_ppo`, last, so they win.

    Returns:
        The exit status: 0, 1 when the work failed (one line on stderr says why), 130 after Ctrl-C.
    """
    console, errors = Console(highlight=False), Console(file=sys.stderr, highlight=False, soft_wrap=True)
    try:
        folder = _make_assets(console, seed=seed, video_dir=video_dir)
        if assets_only:
            return 0
        out_dir = (out_dir or Path("outputs/care_demo") / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")).resolve()
        out_dir.mkdir(parents=True, exist_ok=True)
        return _train(console, errors, folder, out_dir, steps, engine, manager, seed, overrides)
    except (assets.DemoError, OSError) as error:
        errors.print(f"error: {error}", markup=False)
        return 1
    except KeyboardInterrupt:
        errors.print("interrupted; nothing is left running")
        return 130


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)


def _make_assets(console: Console, *, seed: int, video_dir: Path | None) -> Path:
    """Builds what is not there yet, with a bar for each part."""
    with _progress(console) as progress:
        tasks: dict[str, int] = {}

        def on_progress(part: str, done: int, total: int) -> None:
            if part not in tasks:
                tasks[part] = progress.add_task(part, total=total)
            progress.update(tasks[part], completed=done, total=total)

        folder = assets.build_assets(seed=seed, video_dir=video_dir, on_progress=on_progress)
    console.print(f"clips, questions and model: {folder}", soft_wrap=True)
    return folder


def _train(
    console: Console,
    errors: Console,
    folder: Path,
    out_dir: Path,
    steps: int,
    engine: str,
    manager: str,
    seed: int,
    overrides: Sequence[str],
) -> int:
    log, metrics = out_dir / "train.log", out_dir / "metrics.jsonl"
    checkpoints = out_dir / "checkpoints"
    command = [
        "+recipe@_global_=care_demo",
        f"actor_rollout_ref.rollout.name={engine}",
        f"actor_rollout_ref.rollout.custom.seed={seed}",
        f"data.seed={seed}",
        f"reward.reward_manager.name={manager}",
        f"trainer.total_training_steps={steps}",
        f"trainer.default_local_dir={checkpoints}",
        "trainer.logger=[console,file]",
        f"hydra.run.dir={out_dir}/hydra",
        *overrides,
    ]
    environ = {"VERL_CARE_DEMO_DIR": str(folder), "VERL_FILE_LOGGER_PATH": str(metrics)}
    console.print(f"python -m verl.trainer.main_ppo {' '.join(command)}", style="dim", soft_wrap=True, markup=False)
    with _progress(console) as progress, launch.main_ppo(command, log=log, environ=environ) as process:
        task = progress.add_task(STARTING, total=steps)

        def show() -> None:
            curve = read_metrics(metrics) if metrics.exists() else Curve([], [])
            done, lengths = curve.series(LENGTH)
            if done:
                parts = [f"length {lengths[-1]:.1f}", f"accuracy {curve.series(ACCURACY)[1][-1]:.2f}"]
                competence = curve.series(COMPETENCE)[1]
                if competence:
                    parts.append(f"competence {competence[-1]:.3f}")
                progress.update(task, completed=done[-1], description=f"step {done[-1]}: " + ", ".join(parts))

        status = launch.wait(process, show)
    if status != 0:
        errors.print(last_error(log), markup=False)
        errors.print(f"error: main_ppo ended with status {status}; everything it printed: {log}", markup=False)
        return 1
    _summarise(console, read_metrics(metrics), out_dir, checkpoints, log, manager)
    return 0


def _summarise(console: Console, curve: Curve, out_dir: Path, checkpoints: Path, log: Path, manager: str) -> None:
    picture = draw_curves(curve, out_dir / "curve.png", title=f"care_demo, {manager}")
    accuracy, length = curve.series(ACCURACY)[1], curve.series(LENGTH)[1]
    window = min(10, len(accuracy))
    console.print(
        f"accuracy {sum(accuracy[:window]) / window:.2f} -> {sum(accuracy[-window:]) / window:.2f}, response length "
        f"{sum(length[:window]) / window:.1f} -> {sum(length[-window:]) / window:.1f} tokens "
        f"(means of the first and the last {window} of {len(accuracy)} steps)"
    )
    for source, meaning in ((assets.DATA_SOURCE, "held-out clips"), (assets.SWAPPED_SOURCE, "clips swapped")):
        steps, values = curve.series(f"val-core/{source}/acc/mean@1")
        if values:
            console.print(f"{meaning}: accuracy {values[0]:.2f} before, {values[-1]:.2f} after {steps[-1]} steps")
    rows = {
        "checkpoint": max(checkpoints.glob("global_step_*"), key=lambda path: int(path.name.rsplit("_", 1)[1])),
        "rollouts": checkpoints / "care_rollouts",
        "metrics": out_dir / "metrics.jsonl",
        "log": log,
        "curve": picture,
    }
    for name, path in rows.items():
        console.print(f"{name + ':':<12}{path}", soft_wrap=True, markup=False)


def last_error(log: Path, lines: int = 15) -> str:
    """The end of a run's log that tells why it failed: from its last exception on, at most ``lines`` lines."""
    text = log.read_text(encoding="utf-8", errors="replace").splitlines()
    marks = [i for i, line in enumerate(text) if "Error" in line or line.startswith("error:")]
    first = marks[-1] if marks else max(0, len(text) - lines)
    return "\n".join(text[first : first + lines])
