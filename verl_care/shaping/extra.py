"""Where the columns of ``ShapingBatch.extra`` come from: the record, or the response itself. Pure.

A record gives a column under its own name in ``extra_info``. What can be read off a response is measured where the
record says nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

RANGES: dict[str, tuple[float, float]] = {
    "target_length": (0.0, math.inf),
    "ref_length": (0.0, math.inf),
    "ref_accuracy": (0.0, 1.0),
    "profile_length": (0.0, math.inf),
    "uncertainty": (0.0, 1.0),
    "no_think": (0.0, 1.0),
    "direct": (0.0, 1.0),
    "repetitive": (0.0, 1.0),
    "input_length": (0.0, math.inf),
    "num_turns": (0.0, math.inf),
}
"""Every column that a rule can ask for, with its least and greatest value. Tokens; shares; flags of 0 and 1; turns."""


def collect_extra(
    wanted: Mapping[str, float | None],
    records: Sequence[Mapping[str, Any] | None],
    measured: Mapping[str, Sequence[float]],
    prompt_keys: Sequence[str],
    rule: str,
) -> dict[str, Tensor]:
    """The columns that a rule reads.

    Args:
        wanted: names of ``RANGES``, each with its value where neither record nor response gives one; None: an error.
        records: ``extra_info`` of each response's record, N.
        measured: what was read off the responses, N values a name; a record's own value goes first.
        prompt_keys: name of each response's record, N.
        rule: for the message.

    Returns:
        Each name with a (N,) float32 tensor.

    Raises:
        ValueError: a record without a value that the rule needs, or with one that is no number in its range; names
            record and field.
    """
    columns = {}
    for name, default in wanted.items():
        values = []
        for row, (record, key) in enumerate(zip(records, prompt_keys, strict=True)):
            value = (record or {}).get(name)
            if value is None:
                value = measured[name][row] if name in measured else default
                if value is None:
                    raise ValueError(
                        f"record {key}: extra_info.{name}: missing, and rule {rule} needs it of every record; add it "
                        "to the data, or choose another reward.reward_manager.name"
                    )
            else:
                value = _number(value, name, key)
            values.append(float(value))
        columns[name] = torch.tensor(values, dtype=torch.float32)
    return columns


def _number(value: Any, name: str, key: str) -> float:
    low, high = RANGES[name]
    if not isinstance(value, bool | int | float) or not low <= value <= high or math.isinf(value):
        expected = f"a number in [{low:g}, {high:g}]" if math.isfinite(high) else f"a number >= {low:g}"
        raise ValueError(f"record {key}: extra_info.{name}: expected {expected}; got {value!r}")
    return float(value)


def skips_thinking(text: str) -> bool:
    """Whether a response has nothing between its think tags, or no think block at all before its answer.

    AdaptThink's models end the block with their first token (THU-KEG/AdaptThink ``src/adapt_think_reward_manager.py``).
    """
    before, closed, _ = text.partition("</think>")
    if not closed:
        return "<think>" not in text
    return not before.replace("<think>", "").strip()


def is_repetitive(tokens: Sequence[int]) -> bool:
    """Whether a response repeats itself, by LASER-DE's detector (hkust-nlp/Laser ``compute_unique_tokens.py``).

    An n-gram (n = 2 below 30 tokens, 3 below 100, else 4) that is not one token over and over counts when it occurs
    twice (three times from 200 tokens on) with two occurrences in a row less than a third of the response apart; so
    does any sequence of 2 n tokens that occurs twice. Responses of at most eight tokens are never repetitive. The
    published code calls it with a tensor, whose elements never compare as equal keys, and so finds nothing.
    """
    total = len(tokens)
    if total <= 8:
        return False
    n = 2 if total < 30 else 3 if total < 100 else 4
    least = 2 if total < 200 else 3
    places: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i in range(total - n + 1):
        ngram = tuple(tokens[i : i + n])
        if n == 2 or len(set(ngram)) > 1:
            places[ngram].append(i)
    for found in places.values():
        close = any(after - before < total // 3 for before, after in zip(found, found[1:], strict=False))
        if len(found) >= least and close:
            return True
    patterns = [tuple(tokens[i : i + 2 * n]) for i in range(total - 2 * n + 1)]
    return total >= 4 * n and len(set(patterns)) < len(patterns)
