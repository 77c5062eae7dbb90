"""The results of a run as lines for a terminal, as Markdown, and as one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from verl_care.evaluation.scores import INDISTINGUISHABLE
from verl_care.report import html


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage; a dash for none."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _score(headline: Mapping[str, Any]) -> str:
    text = percent(headline["mean"])
    return text if headline["std"] is None else f"{text} ± {percent(headline['std'])}"


def _interval(entry: Mapping[str, Any], signed: bool = False) -> str:
    if entry.get("low") is None or entry.get("high") is None:
        return "–"
    sign = "+" if signed else ""
    return f"{100 * entry['low']:{sign}.1f} to {100 * entry['high']:{sign}.1f}"


def _change(entry: Mapping[str, Any]) -> str:
    return f"{100 * entry['value']:+.1f} ({_interval(entry, signed=True)}), {entry['verdict']}"


def _reduction(entry: Mapping[str, Any]) -> str:
    if "reason" in entry:
        return entry["reason"]
    text = f"{100 * entry['value']:.1f} % ({_interval(entry)})"
    return text if entry["verdict"] != INDISTINGUISHABLE else f"{text}, {INDISTINGUISHABLE}"


HEADS = ("benchmark", "metric", "N", "strict", "95 %", "lenient", "official")


def summary_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """One row a benchmark, by ``HEADS``."""
    rows = []
    for name, entry in results["benchmarks"].items():
        headline = entry["headline"]
        official = _score(headline["official"]) if "official" in headline else "–"
        strict = headline["strict"]
        rows.append(
            [
                name,
                entry["metric"],
                str(entry["counted"]),
                _score(strict),
                _interval(strict),
                _score(headline["lenient"]),
            ]
            + [official]
        )
    return rows


ANSWER_HEADS = (
    "benchmark", "tokens", "when right", "when wrong", "tagged", "unparsed", "truncated", "failed", "frames", "blind",
)  # fmt: skip


def answer_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Tokens, shares of the answers and the blind score, by ``ANSWER_HEADS``."""
    rows = []
    for name, entry in results["benchmarks"].items():
        tokens, shares = entry["tokens"], entry["shares"]
        rows.append(
            [name, *(_number(tokens[part]) for part in ("mean", "right", "wrong"))]
            + [percent(shares[part]) for part in ("tagged", "unparsed", "truncated")]
            + [str(entry["failed"]), _number(entry["frames"])]
            + [_score(entry["blind"]["strict"]) if "blind" in entry else "–"]
        )
    return rows


BASELINE_HEADS = ("benchmark", "N", "strict, points", "McNemar", "tokens saved")


def baseline_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """The comparison with the baseline run, by ``BASELINE_HEADS``; empty without one."""
    rows = []
    for name, entry in results["benchmarks"].items():
        if "baseline" not in entry:
            continue
        found = entry["baseline"]
        test = found.get("mcnemar")
        exact = "graded" if test is None else f"+{test['gained']} −{test['lost']}, p = {test['p']:.3g}"
        rows.append(
            [name, str(found["items"]), _change(found["difference"]["strict"]), exact]
            + [_reduction(found["token_reduction"])]
        )
    return rows


def detail_tables(entry: Mapping[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """A benchmark's further figures and its tables by field: title and rows of name, then one column a reading."""
    readings = list(entry["headline"])
    tables = []
    named = {"figures": entry["figures"], **{f"by {name}": None for name in entry["tables"][readings[0]]}}
    for title in named:
        per_reading = (
            entry["figures"]
            if title == "figures"
            else {reading: entry["tables"][reading][title.removeprefix("by ")] for reading in readings}
        )
        names = list(per_reading[readings[0]])
        if names:
            tables.append((title, [[name, *(percent(per_reading[r].get(name)) for r in readings)] for name in names]))
    return tables


_SCORES = (
    "Scores are percentages. Strict is the headline: what the answer tags hold and nothing beside it. Lenient also "
    "takes the same answer in other words; official is the benchmark's own scorer where it has rules of its own. "
    "An answer that cannot be read, and an item that failed, is wrong. Intervals: bootstrap over videos."
)
_STRATEGIES = (
    "Frames: of the level at which a question ended. Frames read: frames times answers over all levels, which is what "
    "an engine without a prefix cache pays. Decided: share of all questions that agreed at a level. Tokens: of all "
    "answers to a question."
)


def notes(results: Mapping[str, Any]) -> list[str]:
    """What a reader has to know of the run, in sentences."""
    sampling = results["sampling"]
    greedy = sampling["temperature"] == 0
    if "strategies" in results:
        budget = results["budget"]
        levels = ", ".join(str(frames) for frames in budget["frames"])
        how = f"sparse to dense over {levels} frames, {budget['samples']} answers a level of which "
        how += f"{budget['threshold']:.0%} must agree"
        return [f"Model {results['model']}; {how}; {len(results['seeds'])} seed(s).", _SCORES, _STRATEGIES]
    how = "greedy" if greedy else f"temperature {sampling['temperature']:g}, top-p {sampling['top_p']:g}"
    frames = [f"{name} {value}" for name, value in results["frames"].items() if value is not None]
    lines = [
        f"Model {results['model']}; {how}; {len(results['seeds'])} seed(s); answers of at most "
        f"{results['budget']['max_tokens']} tokens; frames and pixels {', '.join(frames) or 'as in the records'}.",
        _SCORES,
    ]
    if results["option_seed"] is not None:
        moved = [entry["reordered"] for entry in results["benchmarks"].values() if entry["reordered"]]
        lines.append(
            f"Options in the order of seed {results['option_seed']}: moved in {sum(m['moved'] for m in moved)} "
            f"questions, left in {sum(m['left'] for m in moved)} whose options speak of one another or cannot be found."
        )
    if results["failed"]:
        lines.append(f"Failed answers: {results['failed']}; items.parquet names each with its error.")
    if results["limit"] is not None:
        lines.append(f"Only the first {results['limit']} items of each benchmark.")
    if results["baseline"] is not None:
        lines.append(
            f"Baseline: {results['baseline']}. A difference whose interval holds 0 is not distinguishable from none."
        )
    return lines


def summary_lines(results: Mapping[str, Any]) -> list[str]:
    """The tables as plain text for a terminal."""
    lines = []
    for heads, rows in _tables(results):
        widths = [max(len(row[column]) for row in [list(heads), *rows]) for column in range(len(heads))]
        for row in [list(heads), *rows]:
            lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        lines.append("")
    return lines


def _tables(results: Mapping[str, Any]) -> list[tuple[Sequence[str], list[list[str]]]]:
    tables: list[tuple[Sequence[str], list[list[str]]]] = [
        (HEADS, summary_rows(results)),
        (ANSWER_HEADS, answer_rows(results)),
    ]
    compared = baseline_rows(results)
    if compared:
        tables.append((BASELINE_HEADS, compared))
    if "strategies" in results:
        tables.append((STRATEGY_HEADS, strategy_rows(results)))
    return tables


STRATEGY_HEADS = (
    "strategy", "strict", "lenient", "frames", "frames read", "tokens", "decided", "failed", "sparse_to_dense − it",
)  # fmt: skip


def strategy_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Sparse-to-dense and what it is compared with, by ``STRATEGY_HEADS``; over all benchmarks."""
    rows = []
    for name, entry in results["strategies"].items():
        decided = ", ".join(f"{frames}: {percent(share, 0)} %" for frames, share in entry["decided_share"].items())
        rows.append(
            [name, percent(entry["acc_strict"]), percent(entry["acc_lenient"]), _number(entry["average_frames"])]
            + [_number(entry["average_frames_read"]), _number(entry["average_tokens"]), decided]
            + [str(entry["num_failed"]), _change(entry["difference"]) if "difference" in entry else "–"]
        )
    return rows


def _markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(heads), "|" + "---|" * len(heads), *map(line, rows), ""]


def to_markdown(results: Mapping[str, Any]) -> str:
    """``results.md``."""
    lines = ["# Evaluation", ""]
    for heads, rows in _tables(results):
        lines += _markdown_table(heads, rows)
    for note in notes(results):
        lines += [note, ""]
    for name, entry in results["benchmarks"].items():
        for title, rows in detail_tables(entry):
            lines += [f"## {name}, {title}", "", *_markdown_table(["", *entry["headline"]], rows)]
    return "\n".join(lines)


_TEMPLATE = """{% block style %}
  h2 { margin: 1.5rem 0 .3rem; }
  .scroll { margin-bottom: 1rem; }
  .details { display: flex; flex-wrap: wrap; gap: 0 2rem; align-items: flex-start; }
  caption { text-align: left; color: #666; }
  img { max-width: 46rem; }
{% endblock %}
{% block body %}<h1>{{ title }}</h1>
{% for heads, rows in tables %}{{ parts.table(heads, rows) }}{% endfor %}
{% for note in notes %}<p>{{ note }}</p>
{% endfor %}{{ parts.figure(figure, "strict scores with their intervals") }}
{% for name, readings, details in benchmarks %}{% if details %}<h2>{{ name }}</h2>
<div class="details">{% for title, rows in details %}{{ parts.table([""] + readings, rows, title) }}{% endfor %}</div>
{% endif %}{% endfor %}{% endblock %}"""


def to_html(results: Mapping[str, Any]) -> str:
    """``results.html``: no script, nothing to load."""
    benchmarks = [
        (name, list(entry["headline"]), detail_tables(entry)) for name, entry in results["benchmarks"].items()
    ]
    return html.render(
        _TEMPLATE,
        title="Evaluation",
        tables=_tables(results),
        notes=notes(results),
        figure=_draw_scores(results),
        benchmarks=benchmarks,
    )


def _draw_scores(results: Mapping[str, Any]) -> str:
    """Strict scores with their intervals, one row a benchmark, as base64 PNG."""
    from matplotlib.figure import Figure

    names = list(results["benchmarks"])
    figure = Figure(figsize=(7, 1.2 + 0.35 * len(names)), layout="constrained")
    axis = figure.subplots()
    for row, name in enumerate(names):
        entry = results["benchmarks"][name]["headline"]
        strict = entry["strict"]
        if strict["low"] is not None:
            axis.plot([100 * strict["low"], 100 * strict["high"]], [row, row], color="#9db7d5", linewidth=4)
        axis.plot([100 * entry["lenient"]["mean"]], [row], "|", color="#555555", markersize=12)
        axis.plot([100 * strict["mean"]], [row], "o", color="#1f5fa8")
        if "blind" in results["benchmarks"][name]:
            axis.plot([100 * results["benchmarks"][name]["blind"]["strict"]["mean"]], [row], "x", color="#b0472b")
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlim(0, 100)
    axis.set_xlabel("dot: strict with its interval; bar: lenient; cross: blind")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, axis="x")
    return html.to_base64(html.to_png(figure))
