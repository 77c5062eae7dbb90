"""The page of a selection: what was kept of every data source and problem type, with pass rates before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verl_care.data.records import replace_file
from verl_care.data.selection import KEPT, OUTCOMES, Score, Selection, histogram
from verl_care.report import html

BINS = 8

_TEMPLATE = """{% block style %}
  th:nth-child(2), td:nth-child(2) { text-align: left; }
  .figures { grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }
{% endblock %}
{% block body %}<h1>Kept {{ kept }} of {{ records }} records</h1>
{{ parts.table(heads, rows) }}
<p>Pass rate: share of right runs; for temporal grounding the mean IoU.
{% if threshold %}Spans had to reach a variance of {{ threshold }}.{% endif %}
{% if failed %}{{ failed }} answers failed and are no runs.{% endif %}</p>
<div class="figures">
{% for name, data in figures %}{{ parts.figure(data, "pass rates of " + name) }}{% endfor %}</div>
{% endblock %}"""


def table_rows(selection: Selection) -> list[list[str]]:
    """A row a stratum: source, type, records, mean pass rate before and after, and records by outcome."""
    strata: dict[tuple[str, str], list[Score]] = {}
    for score in selection.scores:
        strata.setdefault(score.stratum, []).append(score)
    rows = []
    for (source, problem_type), scores in sorted(strata.items()):
        kept = [score for score in scores if score.outcome == KEPT]
        counts = [sum(score.outcome == outcome for score in scores) for outcome in OUTCOMES]
        rows.append(
            [source, problem_type, f"{len(scores)}", _mean_rate(scores), _mean_rate(kept), *(f"{n}" for n in counts)]
        )
    return rows


def _mean_rate(scores: Sequence[Score]) -> str:
    rates = [score.pass_rate for score in scores if not math.isnan(score.pass_rate)]
    return f"{math.fsum(rates) / len(rates):.3f}" if rates else "–"


def _draw(before: Sequence[int], after: Sequence[int], title: str) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4, 2.8), layout="constrained")
    axis = figure.subplots()
    edges = [bin_ / BINS for bin_ in range(BINS)]
    axis.bar(edges, before, width=1 / BINS, align="edge", color="#c9d8ea", edgecolor="white", label="before")
    axis.bar(edges, after, width=1 / BINS, align="edge", color="#1f5fa8", edgecolor="white", label="kept")
    axis.set_title(title, fontsize=9, loc="left")
    axis.set_xlim(0, 1)
    axis.set_xlabel("pass rate")
    axis.set_ylabel("records")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    return html.to_base64(html.to_png(figure, dpi=110))


def write_page(selection: Selection, path: str | Path, summary: Mapping[str, Any]) -> Path:
    """Writes the page, whole or not at all; it holds no script and loads nothing.

    Args:
        selection: what was decided.
        path: of the page.
        summary: ``records``, ``kept``, ``failed_runs``.
    """
    before = histogram(selection.scores, BINS)
    after = histogram([score for score in selection.scores if score.outcome == KEPT], BINS)
    figures = []
    for stratum, counts in sorted(before.items()):
        name = ", ".join(stratum)
        figures.append((name, _draw(counts, after.get(stratum, [0] * BINS), name)))
    page = html.render(
        _TEMPLATE,
        title="Selection",
        kept=summary["kept"],
        records=summary["records"],
        failed=summary["failed_runs"],
        threshold=f"{selection.variance_threshold:.4g}" if selection.variance_threshold else "",
        heads=["source", "type", "records", "pass rate before", "after", *OUTCOMES],
        rows=table_rows(selection),
        figures=figures,
    )
    path = Path(path)
    with replace_file(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")
    return path
