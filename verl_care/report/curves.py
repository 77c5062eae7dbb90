"""Curves of a run: response length, accuracy, competence and stage over the steps, as one PNG.

Reads what verl's ``file`` logger wrote (``trainer.logger=[console,file]``): one JSON object a step.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from verl_care.config import STAGES, CareConfig
from verl_care.data.records import replace_file

STAGE_COLOURS = ("#e8f1fb", "#f3f8fd", "#fdf3e7", "#fae3cc")
"""Backgrounds of the four stages: blue while length is rewarded, orange while brevity is."""

ACCURACY, LENGTH, COMPETENCE, STAGE = "care/pass_rate", "care/response_length/mean", "care/competence", "care/stage"
LENGTH_P90 = "care/response_length/p90"


@dataclass(frozen=True)
class Curve:
    """Metrics of a run by step."""

    steps: list[int]
    metrics: list[dict[str, float]]

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values where the metric is there."""
        pairs = [(step, row[name]) for step, row in zip(self.steps, self.metrics, strict=True) if name in row]
        return [step for step, _ in pairs], [float(value) for _, value in pairs]


def read_metrics(path: str | os.PathLike[str]) -> Curve:
    """Metrics that verl's ``file`` logger wrote; a step that was run again counts once, with its last values.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is no JSON object with ``step`` and ``data``; names file and line. A half-written last
            line, of a run that still goes on, is left out.
    """
    path = Path(path)
    by_step: dict[int, dict[str, float]] = {}
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            step, data = int(entry["step"]), entry["data"]
        except (ValueError, KeyError, TypeError):
            if number == len(lines) and not line.endswith("\n"):
                break
            raise ValueError(f"{path}, line {number}: expected a JSON object with step and data") from None
        numbers = {key: value for key, value in data.items() if isinstance(value, int | float)}
        by_step[step] = {**by_step.get(step, {}), **numbers}
    steps = sorted(by_step)
    return Curve(steps, [by_step[step] for step in steps])


def moving_mean(values: Sequence[float], width: int) -> list[float]:
    """Mean over a centred window of ``width`` values, shorter at both ends."""
    half = width // 2
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def draw_curves(
    curve: Curve, path: str | os.PathLike[str], *, title: str = "", thresholds: CareConfig | None = None
) -> Path:
    """Draws three panels over the steps: response length with its p90, accuracy, and competence with stage bands.

    Args:
        curve: metrics of a run.
        path: of the PNG; written whole or not at all.
        title: above the panels.
        thresholds: the run's constants, for the lines between stages; the published ones by default.

    Raises:
        ValueError: the run has no step with ``care/response_length/mean``.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    if not curve.series(LENGTH)[0]:
        raise ValueError(f"no step has {LENGTH}: the run made no step, or none under a verl_care trainer")
    thresholds = CareConfig() if thresholds is None else thresholds
    with_competence = bool(curve.series(COMPETENCE)[0])
    figure = Figure(figsize=(8, 8 if with_competence else 5.6), layout="constrained")
    axes = figure.subplots(3 if with_competence else 2, 1, sharex=True, squeeze=False)[:, 0]
    window = max(1, len(curve.steps) // 10)

    for panel in axes:
        _shade_stages(panel, *curve.series(STAGE))
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    steps, length = curve.series(LENGTH)
    axes[0].plot(*curve.series(LENGTH_P90), color="#9db7d5", linewidth=1, label="90th percentile")
    _plot_smoothed(axes[0], steps, length, window, "#1f5fa8", "mean")
    axes[0].set_ylabel("response length (tokens)")
    axes[0].set_ylim(bottom=0)
    axes[0].legend(loc="best", frameon=False, fontsize=9)
    _plot_smoothed(axes[1], *curve.series(ACCURACY), window, "#2c7a3f", "rollouts")
    axes[1].set_ylabel("accuracy")
    for name in sorted({key for row in curve.metrics for key in row if key.startswith("val-core/")}):
        if name.endswith("/acc/mean@1"):
            axes[1].plot(*curve.series(name), marker="o", markersize=4, linestyle=":", label=name.split("/")[1])
    axes[1].set_ylim(-0.02, 1.02)
    if len(axes[1].get_legend_handles_labels()[1]) > 1:
        axes[1].legend(loc="best", frameon=False, fontsize=9)
    if with_competence:
        axes[2].plot(*curve.series(COMPETENCE), color="#b0472b", linewidth=1.8)
        borders = (thresholds.explore_threshold, thresholds.refine_threshold, thresholds.concise_threshold)
        for border, stage in zip(borders, STAGES[1:], strict=True):
            axes[2].axhline(border, color="#888888", linewidth=0.7, linestyle="--")
            axes[2].annotate(
                f"{stage} from {border:g}", (1, border), xycoords=("axes fraction", "data"), xytext=(-4, 2),
                textcoords="offset points", ha="right", fontsize=8, color="#666666",
            )  # fmt: skip
        axes[2].set_ylabel("competence")
    axes[-1].set_xlabel("step")
    # Named below the panels: a stage may be too short for its name.
    stages = sorted({round(stage) for stage in curve.series(STAGE)[1]})
    if stages:
        bands = [Patch(color=STAGE_COLOURS[stage], label=STAGES[stage]) for stage in stages]
        figure.legend(handles=bands, loc="outside lower center", ncols=len(bands), frameon=False, fontsize=9)
    if title:
        figure.suptitle(title)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as unfinished:
        figure.savefig(unfinished, dpi=130, format="png")
    return path


def _plot_smoothed(panel, steps: list[int], values: list[float], window: int, colour: str, label: str) -> None:
    if window > 1:
        panel.plot(steps, values, color=colour, alpha=0.3, linewidth=1)
        label = f"{label}, over {2 * (window // 2) + 1} steps"
    panel.plot(steps, moving_mean(values, window), color=colour, linewidth=1.8, label=label)


def _shade_stages(panel, steps: list[int], stages: list[float]) -> None:
    """A background for each run of steps in one stage."""
    first = 0
    for i in range(1, len(steps) + 1):
        if i == len(steps) or round(stages[i]) != round(stages[first]):
            index = round(stages[first])
            right = steps[i] if i < len(steps) else steps[-1]
            panel.axvspan(steps[first], max(right, steps[first] + 0.5), color=STAGE_COLOURS[index], linewidth=0)
            first = i
