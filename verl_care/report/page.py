"""``verl-care report``: runs as one self-contained page, and its figures as PNG files.

Everything comes from the per-rollout log, so the page can be made while a run goes on; competence, which no rollout
has, comes from what verl's ``file`` logger wrote, where that is given. The page holds no script and loads nothing.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from verl_care.config import STAGES
from verl_care.data.records import replace_file
from verl_care.replay import ReplayError, open_run
from verl_care.report import html, tokens
from verl_care.report.curves import COMPETENCE, STAGE_COLOURS, moving_mean, read_metrics
from verl_care.shaping import groups

LOG_COLUMNS = ["step", "uid", "acc", "format", "unparsed", "score", "bonus", "temporal_bonus", "length", "stage"]
COLOURS = ("#1f5fa8", "#b0472b", "#2c7a3f", "#7b4fa3", "#8a6d1f", "#3a8a8c", "#a33b6b", "#555555")
PHASES = ("early", "peak", "late")


@dataclass
class RunData:
    """Figures of a run by update, and lengths of three phases."""

    name: str
    series: dict[str, list[float]] = field(default_factory=dict)
    """Per update: step, length, length_p90, accuracy, format, effort, temporal, length_only, unparsed, stage."""
    lengths: dict[str, Tensor] = field(default_factory=dict)
    """Response lengths of ``PHASES``, each (n,): the first tenth of the updates, those around the peak, the last."""
    competence: tuple[list[int], list[float]] = ((), ())  # type: ignore[assignment]
    token_shares: dict[str, list[float]] = field(default_factory=dict)
    """Per update with a token selection: step, and shares of the tokens; empty without one."""
    pictures: list[tokens.TokenPicture] = field(default_factory=list)
    """Responses with their tokens."""
    num_rollouts: int = 0

    def mean(self, name: str, phase: str) -> float:
        """Mean of a column over a tenth of the updates: the first, the one around the length peak, the last."""
        values = self.series[name]
        rows = _phase_rows(self.series["length"], phase)
        return sum(values[row] for row in rows) / len(rows)


def _phase_rows(lengths: Sequence[float], phase: str) -> list[int]:
    width = max(1, len(lengths) // 10)
    if phase == "early":
        start = 0
    elif phase == "late":
        start = len(lengths) - width
    else:
        smooth = moving_mean(lengths, width)
        start = min(max(0, smooth.index(max(smooth)) - width // 2), len(lengths) - width)
    return list(range(start, start + width))


def read_run(path: str | Path, *, name: str = "", metrics: str | Path | None = None) -> RunData:
    """A run's figures from its rollout log.

    Args:
        path: the run's folder (``trainer.default_local_dir``).
        name: shown in the report; the folder's name by default.
        metrics: file of verl's ``file`` logger; by default ``metrics.jsonl`` in the folder, if there.

    Raises:
        ReplayError: no log, or a file of it that cannot be read.
    """
    run = open_run(path)
    if run.is_dump:
        raise ReplayError(f"{path}: verl's dumps have no accuracy, format and length; expected a verl_care run")
    data = RunData(name or Path(path).resolve().name)
    per_update: list[Tensor] = []
    for file in run.files:
        try:
            table = pq.read_table(file, columns=LOG_COLUMNS)
        except (pa.ArrowInvalid, KeyError, OSError) as error:
            raise ReplayError(f"{file}: {error}") from None
        if len(table):
            lengths = _add_update(data, table)
            per_update.append(lengths)
            data.num_rollouts += len(table)
    if not per_update:
        raise ReplayError(f"{path}: the rollout log holds no rows yet")
    for phase in PHASES:
        data.lengths[phase] = torch.cat([per_update[row] for row in _phase_rows(data.series["length"], phase)])
    data.token_shares = tokens.read_shares(run.files)
    data.pictures = tokens.read_pictures(run.files)
    metrics = Path(metrics) if metrics is not None else Path(path) / "metrics.jsonl"
    if metrics.exists():
        data.competence = read_metrics(metrics).series(COMPETENCE)
    return data


def _add_update(data: RunData, table: pa.Table) -> Tensor:
    def column(name: str) -> Tensor:
        return torch.from_numpy(table[name].cast(pa.float32()).fill_null(0.0).to_numpy().copy())

    score, bonus, temporal = column("score"), column("bonus"), column("temporal_bonus")
    group = torch.from_numpy(table["uid"].combine_chunks().dictionary_encode().indices.to_numpy().astype("int64"))

    def spread(values: Tensor) -> Tensor:
        return groups.group_max(values, group) - groups.group_min(values, group)

    index, num_groups = groups.index_groups(group)
    length_only = (spread(score + temporal) <= 1e-6) & (spread(score + bonus) > 1e-6)
    lengths = column("length")
    stages = [stage for stage in pc.unique(table["stage"]).to_pylist() if stage in STAGES]
    row = {
        "step": float(table["step"][0].as_py()),
        "length": float(lengths.mean()),
        "length_p90": float(groups.quantile(lengths, 0.9)),
        "accuracy": float(column("acc").mean()),
        "format": float(column("format").mean()),
        "effort": float((bonus - temporal).mean()),
        "temporal": float(temporal.mean()),
        "length_only": float(groups.mean(length_only.float(), index, num_groups).mean()),
        "unparsed": float(column("unparsed").mean()),
        "stage": sum(STAGES.index(stage) for stage in stages) / len(stages) if stages else math.nan,
    }
    for name, value in row.items():
        data.series.setdefault(name, []).append(value)
    return lengths


def token_reduction(run: RunData, baseline: RunData) -> float:
    """1 - mean length / mean length of the baseline, over the last tenth of the updates of each."""
    return 1 - run.mean("length", "late") / baseline.mean("length", "late")


def summarise(runs: Sequence[RunData], baseline: RunData | None) -> list[dict[str, Any]]:
    """A row of figures a run, in JSON types."""
    return [
        {
            "run": run.name,
            "first_step": int(run.series["step"][0]),
            "updates": len(run.series["step"]),
            "rollouts": run.num_rollouts,
            "length_early": run.mean("length", "early"),
            "length_peak": run.mean("length", "peak"),
            "length_late": run.mean("length", "late"),
            "accuracy_early": run.mean("accuracy", "early"),
            "accuracy_late": run.mean("accuracy", "late"),
            "token_reduction": None if baseline is None else token_reduction(run, baseline),
            "length_only_groups": sum(run.series["length_only"]) / len(run.series["length_only"]),
            "unparsed_late": run.mean("unparsed", "late"),
        }
        for run in runs
    ]


# Figures


def _new_figure(title: str, height: float = 3.6) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, height), layout="constrained")
    axis = figure.subplots()
    axis.set_title(title, fontsize=10, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    return figure, axis


def _draw_lines(runs: Sequence[RunData], name: str, title: str, label: str) -> Any:
    figure, axis = _new_figure(title)
    _shade(axis, runs[0])
    for run, colour in zip(runs, COLOURS * 8, strict=False):
        steps, values = run.series["step"], run.series[name]
        axis.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
        axis.plot(steps, moving_mean(values, max(1, len(values) // 10)), color=colour, linewidth=1.8, label=run.name)
    axis.set_xlabel("step")
    axis.set_ylabel(label)
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False, fontsize=8)
    return figure


def _shade(axis: Any, run: RunData) -> None:
    """Bands of the stages of one run, each named at its top."""
    steps, stages = run.series["step"], run.series["stage"]
    first = 0
    for i in range(1, len(steps) + 1):
        if i < len(steps) and _stage_index(stages[i]) == _stage_index(stages[first]):
            continue
        index = _stage_index(stages[first])
        if index is not None:
            right = steps[i] if i < len(steps) else steps[-1]
            axis.axvspan(steps[first], max(right, steps[first] + 0.5), color=STAGE_COLOURS[index], linewidth=0)
            axis.annotate(
                STAGES[index],
                (steps[first], 1),
                xycoords=("data", "axes fraction"),
                xytext=(3, -10),
                textcoords="offset points",
                fontsize=7,
                color="#666666",
            )
        first = i


def _stage_index(stage: float) -> int | None:
    return None if math.isnan(stage) else round(stage)


def _draw_competence(runs: Sequence[RunData]) -> Any:
    figure, axis = _new_figure("Competence")
    _shade(axis, runs[0])
    for run, colour in zip(runs, COLOURS * 8, strict=False):
        if run.competence[0]:
            axis.plot(*run.competence, color=colour, linewidth=1.8, label=run.name)
    axis.set_xlabel("step")
    axis.set_ylabel("competence")
    axis.legend(frameon=False, fontsize=8)
    return figure


def density(lengths: Tensor, grid: Tensor) -> Tensor:
    """Gaussian kernel density with Scott's bandwidth, on the grid; lengths and grid (n,), (m,) in tokens."""
    spread = float(lengths.double().std()) if lengths.numel() > 1 else 0.0
    bandwidth = max(spread * lengths.numel() ** -0.2, 1.0)
    # By counts of whole tokens: a run has many more responses than lengths.
    values, counts = torch.unique(lengths.round(), return_counts=True)
    kernel = torch.exp(-0.5 * ((grid[:, None] - values[None, :]) / bandwidth).square())
    return (kernel * counts).sum(1) / (counts.sum() * bandwidth * math.sqrt(2 * math.pi))


def _draw_density(run: RunData) -> Any:
    figure, axis = _new_figure(f"Response lengths, {run.name}")
    grid = torch.linspace(0, max(float(lengths.max()) for lengths in run.lengths.values()) * 1.1 + 1, 300)
    for phase, colour in zip(PHASES, ("#8aa9cc", "#b0472b", "#1f5fa8"), strict=True):
        axis.plot(grid.tolist(), density(run.lengths[phase], grid).tolist(), color=colour, label=phase)
    axis.set_xlabel("response length (tokens)")
    axis.set_yticks([])
    axis.legend(frameon=False, fontsize=8)
    return figure


def _draw_components(run: RunData) -> Any:
    figure, axis = _new_figure(f"Mean reward by component, {run.name}")
    names = ("accuracy", "format", "temporal", "effort")
    for name, colour in zip(names, COLOURS, strict=False):
        values = moving_mean(run.series[name], max(1, len(run.series[name]) // 10))
        axis.plot(run.series["step"], values, color=colour, linewidth=1.6, label=name)
    axis.set_xlabel("step")
    axis.legend(frameon=False, fontsize=8, ncols=2)
    return figure


def _draw_token_shares(run: RunData) -> Any:
    figure, axis = _new_figure(f"Tokens that train, and what each signal chose, {run.name}")
    steps = run.token_shares["step"]
    for name, colour in zip([name for name in run.token_shares if name != "step"], COLOURS, strict=False):
        axis.plot(steps, run.token_shares[name], color=colour, linewidth=1.6, label=name)
    axis.set_xlabel("step")
    axis.set_ylabel("share of tokens")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False, fontsize=8, ncols=2)
    return figure


def draw_figures(runs: Sequence[RunData]) -> dict[str, Any]:
    """The report's figures by file name; those that compare first, then those of each run."""
    figures = {
        "length": _draw_lines(runs, "length", "Response length", "mean length (tokens)"),
        "accuracy": _draw_lines(runs, "accuracy", "Accuracy of the rollouts", "accuracy"),
    }
    if any(run.competence[0] for run in runs):
        figures["competence"] = _draw_competence(runs)
    figures["length_only"] = _draw_lines(
        runs, "length_only", "Groups whose whole gradient comes from length", "share of groups"
    )
    figures["unparsed"] = _draw_lines(runs, "unparsed", "Answers that could not be parsed", "share of responses")
    for number, run in enumerate(runs):
        figures[f"lengths_{number}"] = _draw_density(run)
        figures[f"components_{number}"] = _draw_components(run)
        if run.token_shares:
            figures[f"tokens_{number}"] = _draw_token_shares(run)
    return figures


# The page

TEMPLATE = """{% block style %}
  h3 { font-size: .9rem; font-weight: 600; margin: 1rem 0 .2rem; }
  {{ token_style }}
{% endblock %}
{% block body %}<h1>{{ title }}</h1>
{{ parts.table(heads, rows) }}
<p>Early and late are the first and the last tenth of the updates, peak the tenth around the longest responses. Bands
are the stages of {{ first }}.{% if baseline %} Token reduction is against {{ baseline }}, late.{% endif %} Length-only
groups have equal scores and unequal rewards.</p>
<div class="figures">
{% for figure in figures %}{{ parts.figure(figure.data, figure.name) }}{% endfor %}</div>
{% for run in pictured %}<h2>Tokens that train, {{ run.name }}</h2>
<p class="legend">{% for span in legend %}<span class="{{ span.style }}">{{ span.text }}</span> {% endfor %}: colours
say which signals chose a token, the line under it that it trains.</p>
{% for picture in run.pictures %}<h3>{{ picture.title }}</h3>
<div class="tokens">{% for span in picture.spans %}<span class="{{ span.style }}" title="{{ span.hint }}">\
{{ span.text }}</span>{% endfor %}</div>
{% endfor %}{% endfor %}{% endblock %}"""


def write_report(
    runs: Sequence[RunData], out_dir: str | Path, *, baseline: RunData | None = None, title: str = "CARE report"
) -> Path:
    """Writes ``report.html``, ``report.json`` and the figures as PNG; each file whole or not at all.

    Returns:
        Path of the page.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    figures = []
    for name, figure in draw_figures(runs).items():
        png = html.to_png(figure)
        _write(out_dir / f"{name}.png", png)
        figures.append({"name": name.replace("_", " "), "data": html.to_base64(png)})
    summary = summarise(runs, baseline)
    heads = ["run", "updates", "rollouts", "length early", "peak", "late", "accuracy early", "late"]
    heads += (["token reduction"] if baseline else []) + ["length-only groups", "unparsed, late"]
    page = html.render(
        TEMPLATE,
        title=title,
        heads=heads,
        rows=[_cells(row, baseline is not None) for row in summary],
        figures=figures,
        first=runs[0].name,
        baseline=baseline.name if baseline else None,
        pictured=[run for run in runs if run.pictures],
        legend=tokens.legend(),
        token_style=tokens.style_sheet(),
    )
    _write(out_dir / "report.json", json.dumps(summary, indent=1).encode())
    _write(out_dir / "report.html", page.encode())
    return out_dir / "report.html"


def _cells(row: Mapping[str, Any], with_baseline: bool) -> list[str]:
    since = f" from step {row['first_step']}" if row["first_step"] > 1 else ""
    cells = [row["run"], f"{row['updates']}{since}", f"{row['rollouts']}"]
    cells += [f"{row[name]:.0f}" for name in ("length_early", "length_peak", "length_late")]
    cells += [f"{row[name]:.3f}" for name in ("accuracy_early", "accuracy_late")]
    cells += [f"{row['token_reduction']:+.1%}"] if with_baseline else []
    return [*cells, f"{row['length_only_groups']:.1%}", f"{row['unparsed_late']:.1%}"]


def _write(path: Path, content: bytes) -> None:
    with replace_file(path) as unfinished:
        unfinished.write_bytes(content)


def main(
    paths: Sequence[str | Path],
    *,
    out_dir: str | Path | None = None,
    baseline: str | Path | None = None,
    metrics: Sequence[str | Path] = (),
    as_json: bool = False,
) -> int:
    """What ``verl-care report`` does.

    Args:
        paths: folders of runs.
        out_dir: folder of the report; ``report`` in the first run's folder by default.
        baseline: folder of the run that token reduction is measured against; with several runs the first by default.
        metrics: files of verl's ``file`` logger, one a run, in the order of ``paths``.
        as_json: prints the figures of the table.

    Returns:
        Exit status: 0, or 1 where a run cannot be read.
    """
    try:
        if metrics and len(metrics) != len(paths):
            raise ReplayError(f"--metrics: expected one file a run; got {len(metrics)} for {len(paths)} runs")
        names = _distinct_names([Path(path) for path in paths])
        files: Sequence[str | Path | None] = metrics or [None] * len(paths)
        runs = [read_run(p, name=n, metrics=m) for p, n, m in zip(paths, names, files, strict=True)]
        compared = runs[0] if len(runs) > 1 else None
        reference = read_run(baseline) if baseline is not None else compared
        page = write_report(runs, out_dir if out_dir is not None else Path(paths[0]) / "report", baseline=reference)
    except (ReplayError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"page": str(page), "runs": summarise(runs, reference)}) if as_json else f"wrote {page}")
    return 0


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max(len(part) for part in parts)):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
