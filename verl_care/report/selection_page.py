"""The page of a selection: what was kept of every data source and problem type, with pass rates before and after."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verl_care.data.selection import KEPT, OUTCOMES, Score, Selection, histogram

BINS = 8

_TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>Selection</title>
<style>
  :root { color-scheme: light; }
  body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto; padding: 1rem;
         max-width: 76rem; }
  h1 { font-size: 1.4rem; margin: 0 0 .5rem; }
  .scroll { overflow-x: auto; }
  table { border-collapse: collapse; font-size: .9rem; }
  th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
  th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
  .figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 1rem;
             margin-top: 1rem; }
  img { width: 100%; height: auto; }
  p { max-width: 46rem; overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>Kept {{ kept }} of {{ records }} records</h1>
<div class="scroll"><table>
<thead><tr>{% for head in heads %}<th>{{ head }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
<p>Pass rate: share of right runs; for temporal grounding the mean IoU.
{% if threshold %}Spans had to reach a variance of {{ threshold }}.{% endif %}
{% if failed %}{{ failed }} answers failed and are no runs.{% endif %}</p>
<div class="figures">
{% for name, data in figures %}<img src="data:image/png;base64,{{ data }}" alt="pass rates of {{ name }}">
{% endfor %}</div>
</body>
</html>
"""


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
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return base64.b64encode(buffer.getvalue()).decode()


def write_page(selection: Selection, path: str | Path, summary: Mapping[str, Any]) -> Path:
    """Writes the page, whole or not at all; it holds no script and loads nothing.

    Args:
        selection: what was decided.
        path: of the page.
        summary: ``records``, ``kept``, ``failed_runs``.
    """
    import jinja2

    before = histogram(selection.scores, BINS)
    after = histogram([score for score in selection.scores if score.outcome == KEPT], BINS)
    figures = []
    for stratum, counts in sorted(before.items()):
        name = ", ".join(stratum)
        figures.append((name, _draw(counts, after.get(stratum, [0] * BINS), name)))
    page = (
        jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
        .from_string(_TEMPLATE)
        .render(
            kept=summary["kept"],
            records=summary["records"],
            failed=summary["failed_runs"],
            threshold=f"{selection.variance_threshold:.4g}" if selection.variance_threshold else "",
            heads=["source", "type", "records", "pass rate before", "after", *OUTCOMES],
            rows=table_rows(selection),
            figures=figures,
        )
    )
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)
    return path
