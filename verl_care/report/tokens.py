"""The report's picture of a token selection: responses with their tokens coloured by signal, and shares over steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from verl_care.config import SIGNALS

BITS = {signal: 1 << number for number, signal in enumerate(SIGNALS)}
"""What the log's ``token_signals`` adds up for a token that a signal chose."""
TRAINED = 1 << len(SIGNALS)
"""What it adds for a token that trains."""
COLOURS = {"visual": "#bcd7f5", "temporal": "#f6c9a8", "entropy": "#cfe8b5"}


@dataclass(frozen=True)
class TokenSpan:
    """One token of a response."""

    text: str
    style: str
    """Classes: ``s`` and the sum of the bits of its signals, ``on`` where it trains."""
    hint: str
    """Its signals with their scores."""


@dataclass(frozen=True)
class TokenPicture:
    """A response with its tokens."""

    title: str
    spans: list[TokenSpan]


def read_shares(files: Sequence[Path]) -> dict[str, list[float]]:
    """Mean shares of the tokens over steps: ``step``, ``selected`` and a key for each signal that the run has.

    Args:
        files: of a rollout log, in order. Those without a selection are left out.

    Returns:
        Lists of equal length, NaN where a signal is missing from a step; empty for a run without selection.
    """
    series: dict[str, list[float]] = {name: [] for name in ("step", "selected", *SIGNALS)}
    for file in files:
        wanted = ["step", "length", "tokens_selected", *(f"{signal}_share" for signal in SIGNALS)]
        present = set(pq.read_schema(file).names)
        table = pq.read_table(file, columns=[name for name in wanted if name in present])
        num_tokens = pc.sum(table["length"]).as_py() if "length" in present else None
        if (
            not num_tokens
            or "tokens_selected" not in present
            or not table["tokens_selected"].is_valid().to_numpy().any()
        ):
            continue
        series["step"].append(float(table["step"][0].as_py()))
        series["selected"].append(pc.sum(table["tokens_selected"]).as_py() / num_tokens)
        for signal in SIGNALS:
            mean = pc.mean(table[f"{signal}_share"]).as_py() if f"{signal}_share" in present else None
            series[signal].append(float("nan") if mean is None else mean)
    return {name: values for name, values in series.items() if any(value == value for value in values)}


def read_pictures(files: Sequence[Path], *, updates: int = 3, responses: int = 4) -> list[TokenPicture]:
    """Responses of a run with their tokens, spread over its updates.

    Args:
        files: of a rollout log, in order.
        updates: how many updates to show, the first and the last among them.
        responses: how many of each at most.
    """
    logged = [file for file in files if "tokens" in pq.read_schema(file).names]
    places = sorted({round(i * (len(logged) - 1) / max(1, updates - 1)) for i in range(updates)}) if logged else []
    pictures = []
    for place in places:
        rows = [row for row in pq.read_table(logged[place]).to_pylist() if row["tokens"] is not None]
        pictures += [_picture(row) for row in rows[:responses]]
    return pictures


def _picture(row: dict[str, Any]) -> TokenPicture:
    spans = []
    for place, (text, bits) in enumerate(zip(row["tokens"], row["token_signals"], strict=True)):
        signals = sum(bit for bit in BITS.values() if bits & bit)
        scores = {signal: row.get(f"{signal}_scores") for signal in SIGNALS}
        hints = [f"{signal} {values[place]:.3f}" for signal, values in scores.items() if values is not None]
        chosen = [signal for signal, bit in BITS.items() if bits & bit]
        hint = "; ".join(filter(None, [", ".join(hints), f"chosen by {' and '.join(chosen)}" if chosen else ""]))
        style = " ".join(filter(None, [f"s{signals}" if signals else "", "on" if bits & TRAINED else ""]))
        spans.append(TokenSpan(text, style, hint))
    accuracy = "" if row.get("acc") is None else f", accuracy {row['acc']:.2f}"
    trained = sum(1 for bits in row["token_signals"] if bits & TRAINED)
    title = f"step {row['step']}, {row['prompt_key']}{accuracy}: {trained} of {len(row['tokens'])} tokens train"
    return TokenPicture(title, spans)


def style_sheet() -> str:
    """CSS of the pictures: one background a set of signals, an underline where a token trains."""
    rules = [".tokens { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; max-width: 60rem; }"]
    rules += [".tokens .on, .legend .on { text-decoration: underline 2px #222; text-underline-offset: 3px; }"]
    for bits in range(1, TRAINED):
        chosen = [COLOURS[signal] for signal, bit in BITS.items() if bits & bit]
        stripes = ", ".join(
            f"{colour} {100 * i // len(chosen)}% {100 * (i + 1) // len(chosen)}%" for i, colour in enumerate(chosen)
        )
        rules.append(f".s{bits} {{ background: linear-gradient(to bottom, {stripes}); }}")
    return "\n".join(rules)


def legend() -> list[TokenSpan]:
    """What the colours stand for."""
    return [TokenSpan(signal, f"s{bit}", "") for signal, bit in BITS.items()] + [TokenSpan("trains", "on", "")]
