"""Temporal spans: how they are read from an answer, and how well predicted ones cover the annotated ones. Pure.

A span is a pair (start, end), in seconds or as shares of the clip's duration. Answers may be JSON
(``{"start_time": "3.2", "end_time": "7"}``, ``[3.2, 7]``, ``{"spans": [[0, 2], [3.2, 7]]}``) or text (``3.2 to 7``,
``00:03 - 00:07``), with one span or several. The JSON object with two keys is the answer format of Temporal-RLT
(arXiv 2506.01908; appletea233/Temporal-R1, ``verl/utils/reward_score/tvg.py``).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

Span = tuple[float, float]

UNITS = ("seconds", "normalised")
"""Units of a span: seconds from the start of the clip, or shares of its duration in [0, 1]."""

SPAN_REWARDS = ("iou", "boundary")
"""``iou``: temporal IoU; ``boundary``: Time-R1's IoU with distances of both ends (arXiv 2503.13377)."""

GOLD_SPANS = ("max", "union")
"""Several gold spans: the best one counts (as NExT-GQA scores them), or all of them together (as CG-Bench does)."""

MAX_SECONDS = 1e7
"""Later times are no times (115 days): sums of times then stay far from overflow."""

MAX_SPANS = 64
"""An answer with more spans than this names none."""

MAX_GOLD_OVERHANG_SECONDS = 1.0
"""How far a gold span may end after its clip: annotations are often rounded up to the next second."""

_SPAN_KEYS = (("start_time", "end_time"), ("start", "end"))
_LIST_KEYS = ("span", "spans", "segment", "segments", "timestamps")
_ANSWER_KEYS = ("answer", "option")

# Every repetition is bounded, and no two adjacent parts can share a run of characters: linear on hostile text.
_SECONDS = r"\d{1,9}(?:\.\d{1,9})?"
_CLOCK = r"(?:\d{1,4}:)?\d{1,4}:\d{2}(?:\.\d{1,9})?"
_TIME = rf"({_CLOCK}|{_SECONDS})(?! ?:)(?: ?(s|secs?|seconds?)\b)?"
_PAIR = re.compile(
    rf"(?:from |(?P<between>between ))?(?<![\w.:–—-])(?<!\d to ){_TIME} ?(?(between)and|(?:to|until|[-–—~])) ?{_TIME}"
    r"(?![\w:]|\.\d| ?(?:to|until|[-–—~]) ?\d)",
    re.IGNORECASE,
)
_JOIN = re.compile(r" ?(?:[;,]|[;,]? ?and ) ?", re.IGNORECASE)
_TIME_ALONE = re.compile(rf" ?{_TIME} ?", re.IGNORECASE)
_FENCE = re.compile(r"```(?:json)?(.*?)```", re.DOTALL | re.IGNORECASE)
_LABEL = re.compile(r"[(\[]?[A-Za-z][)\]]?[.:]?")
_LIST = re.compile(r"\[[\[\d\"][^a-zA-Z]{0,256}$")
_BRACKETS = {"(": ")", "[": "]"}


def _clock(text: str) -> float | None:
    """Seconds of ``mm:ss`` or ``h:mm:ss``, either with a fraction; None if a part runs over."""
    *upper, seconds = text.split(":")
    hours, minutes = (int(upper[0]), int(upper[1])) if len(upper) == 2 else (0, int(upper[0]))
    if float(seconds) >= 60 or (len(upper) == 2 and minutes >= 60):
        return None
    return hours * 3600 + minutes * 60 + float(seconds)


def _time(digits: str, with_unit: bool, unit: str) -> float | None:
    if unit == "normalised" and (":" in digits or with_unit):
        return None
    return _in_range(_clock(digits) if ":" in digits else float(digits), unit)


def _in_range(time: float | None, unit: str) -> float | None:
    bound = 1.0 if unit == "normalised" else MAX_SECONDS
    return time if time is not None and math.isfinite(time) and 0 <= time <= bound else None


def read_time(value: object, unit: str = "seconds") -> float | None:
    """The time that a JSON value is: a number, or a text such as ``3.2``, ``3.2 s``, ``01:05`` or ``1:00:05``.

    Args:
        value: anything.
        unit: one of ``UNITS``.

    Returns:
        A finite time >= 0, at most ``MAX_SECONDS`` (at most 1 where normalised), or None.
    """
    if isinstance(value, str) and len(value) <= 64:
        match = _TIME_ALONE.fullmatch(value)
        return _time(match[1], match[2] is not None, unit) if match else None
    if isinstance(value, int | float) and not isinstance(value, bool) and -1 < value <= MAX_SECONDS:
        return _in_range(float(value), unit)
    return None


def _json_spans(value: Any, unit: str) -> tuple[Span, ...] | None:
    if isinstance(value, Mapping):
        for keys in _SPAN_KEYS:
            if all(key in value for key in keys):
                return _json_spans([value[key] for key in keys], unit)
        lists = [value[key] for key in _LIST_KEYS if key in value]
        return _json_spans(lists[0], unit) if len(lists) == 1 and isinstance(lists[0], list) else None
    if not isinstance(value, list) or not 0 < len(value) <= MAX_SPANS:
        return None
    if isinstance(value[0], list | dict):
        found: list[Span] = []
        for entry in value:
            # One level: a list in a list in a list is no span.
            nested = isinstance(entry, list) and any(isinstance(time, list | dict) for time in entry)
            spans = None if nested else _json_spans(entry, unit)
            if spans is None or len(spans) != 1:
                return None
            found += spans
        return tuple(found)
    start, end = (read_time(time, unit) for time in value) if len(value) == 2 else (None, None)
    return None if start is None or end is None else ((start, end),)


def _json(text: str) -> Any:
    """The JSON object or list that a text is; None for any other text."""
    if not text.startswith(("{", "[")):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        # Not JSON, or too deep or too many digits to be a span: the text reader has its say.
        return None


def _pair(match: re.Match[str], unit: str) -> Span | None:
    _, first, first_unit, last, last_unit = match.groups()
    start, end = _time(first, first_unit is not None, unit), _time(last, last_unit is not None, unit)
    return None if start is None or end is None else (start, end)


def _text_spans(text: str, unit: str) -> tuple[Span, ...] | None:
    """Spans of a text that consists of nothing but spans, joined by commas, semicolons or ``and``."""
    if text[:1] in _BRACKETS and text.endswith(_BRACKETS[text[0]]):
        text = text[1:-1].strip()
    spans: list[Span] = []
    position = 0
    while len(spans) < MAX_SPANS:
        match = _PAIR.match(text, position)
        span = _pair(match, unit) if match else None
        if match is None or span is None:
            return None
        spans.append(span)
        if match.end() == len(text):
            return tuple(spans)
        join = _JOIN.match(text, match.end())
        if join is None:
            return None
        position = join.end()
    return None


def _collapse(text: str) -> str:
    return " ".join(text.split()).rstrip(".")


def read_spans(text: str, unit: str = "seconds") -> tuple[Span, ...] | None:
    """The spans that an answer is, as JSON or as text, and nothing else.

    Args:
        text: answer of the response.
        unit: one of ``UNITS``: what its numbers mean.

    Returns:
        One span or more as they were given, so a reversed or empty one is there too (see ``are_valid``); None when the
        text is no span, holds a time that is none (``1.2.3``, ``0:75``, a negative one, one above 1 where normalised),
        or more than ``MAX_SPANS``.
    """
    value = _json(text.strip())
    return _json_spans(value, unit) if value is not None else _text_spans(_collapse(text), unit)


def find_spans(text: str, unit: str = "seconds") -> tuple[Span, ...] | None:
    """As ``read_spans``, and also JSON in a code fence, or the one span among words (``it runs from 3 to 7 s``).

    Words with two spans name none: which one is meant is not ours to guess.
    """
    spans = read_spans(text, unit)
    if spans is not None:
        return spans
    fence = _FENCE.search(text)
    if fence:
        return read_spans(fence[1], unit)
    matches = [match for match, _ in zip(_PAIR.finditer(_collapse(text)), range(2), strict=False)]
    span = _pair(matches[0], unit) if len(matches) == 1 else None
    return None if span is None else (span,)


def _trim(option: str) -> str:
    return option.strip().rstrip(";,").strip()


def _split(text: str, unit: str) -> tuple[str, tuple[Span, ...] | None]:
    """What stands in front of the spans of an answer, and the spans."""
    value = _json(text.strip())
    if isinstance(value, Mapping):
        options = [value[key] for key in _ANSWER_KEYS if isinstance(value.get(key), str)]
        return (options[0].strip() if len(options) == 1 else ""), _json_spans(value, unit)
    if value is not None:
        return "", _json_spans(value, unit)
    collapsed = _collapse(text)
    match = _PAIR.search(collapsed)
    if match is None:
        listed = _LIST.search(collapsed)
        spans = _json_spans(_json(listed[0]), unit) if listed else None
        return (collapsed, None) if listed is None or spans is None else (_trim(collapsed[: listed.start()]), spans)
    head, tail = collapsed[: match.start()].rstrip(), collapsed[match.start() :]
    if head[-1:] in _BRACKETS:
        head, tail = head[:-1], head[-1] + tail
    return _trim(head), _text_spans(tail, unit)


def read_option_and_spans(text: str, unit: str = "seconds") -> tuple[str, tuple[Span, ...] | None]:
    """Option and spans of an answer that gives both, and nothing else.

    Reads ``{"answer": "B", "start_time": 3, "end_time": 7}`` with any span keys, and ``B; 3 to 7``, ``B, 3 to 7``,
    ``(B) [3, 7]``.

    Args:
        text: answer of the response.
        unit: one of ``UNITS``.

    Returns:
        The option as it is given, empty without one, and the spans, None without any. A text with words in front of the
        spans is an option without spans.
    """
    option, spans = _split(text, unit)
    alone = not option or _LABEL.fullmatch(option) or _json(text.strip()) is not None
    return (option, spans) if alone else (_collapse(text), None)


def find_option_and_spans(text: str, unit: str = "seconds") -> tuple[str, tuple[Span, ...] | None]:
    """As ``read_option_and_spans``, with words beside: JSON in a code fence, spans at the end, or one among words.

    Returns:
        The words around the spans, for the option to be read from, and the spans, None without any.
    """
    fence = _FENCE.search(text)
    if fence:
        text = fence[1]
    option, spans = _split(text, unit)
    if spans is not None or _json(text.strip()) is not None:
        return option, spans
    collapsed = _collapse(text)
    spans = find_spans(collapsed, unit)
    return (_trim(" ".join(_PAIR.sub(" ", collapsed, count=1).split())) if spans else collapsed), spans


def are_valid(spans: Sequence[Span] | None) -> bool:
    """Whether there are spans and each of them ends after it starts."""
    return spans is not None and len(spans) > 0 and all(start < end for start, end in spans)


def merge(spans: Sequence[Span]) -> list[Span]:
    """The same stretch of time as disjoint spans in order; what touches is joined."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def temporal_iou(first: Sequence[Span], second: Sequence[Span]) -> float:
    """Intersection over union of two stretches of time, each the union of its spans.

    For one span each: max(0, min(e1, e2) - max(s1, s2)) / (max(e1, e2) - min(s1, s2)) wherever they overlap, else 0
    (arXiv 2506.01908; appletea233/Temporal-R1, ``tvg.py`` ``temporal_iou``). Symmetric.

    Args:
        first: spans in any order, in the unit of ``second``.
        second: spans.

    Returns:
        [0, 1]; 0.0 where a side is empty or has a span that does not end after it starts.
    """
    if not are_valid(first) or not are_valid(second):
        return 0.0
    a, b = merge(first), merge(second)
    shared: list[float] = []
    i = j = 0
    while i < len(a) and j < len(b):
        shared.append(max(0.0, min(a[i][1], b[j][1]) - max(a[i][0], b[j][0])))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    intersection = math.fsum(shared)
    union = math.fsum(end - start for start, end in merge([*first, *second]))
    return min(1.0, intersection / union) if intersection > 0 else 0.0


def boundary_iou(pred: Sequence[Span], gold: Sequence[Span], duration: float) -> float:
    """Time-R1's IoU * (1 - |start - gold start| / T) * (1 - |end - gold end| / T) (arXiv 2503.13377).

    Several spans on a side count by the start of the first and the end of the last. A factor below 0 (an end far behind
    the clip) counts as 0.

    Args:
        pred: predicted spans.
        gold: gold spans in the same unit.
        duration: T, the clip's duration in that unit, > 0 (1 where normalised).

    Returns:
        [0, 1], never above ``temporal_iou``.
    """
    iou = temporal_iou(pred, gold)
    if not iou:
        return 0.0
    starts = abs(min(start for start, _ in pred) - min(start for start, _ in gold))
    ends = abs(max(end for _, end in pred) - max(end for _, end in gold))
    return iou * max(0.0, 1.0 - starts / duration) * max(0.0, 1.0 - ends / duration)


def score_spans(
    pred: Sequence[Span] | None,
    gold: Sequence[Span],
    *,
    reward: str = "iou",
    gold_spans: str = "max",
    duration: float | None = None,
) -> float:
    """How well predicted spans match the gold ones.

    Args:
        pred: predicted spans, None without any; several count as their union, so more guesses do not help.
        gold: gold spans in the same unit.
        reward: one of ``SPAN_REWARDS``.
        gold_spans: one of ``GOLD_SPANS``.
        duration: the clip's duration in the same unit; ``boundary`` needs it.

    Returns:
        [0, 1]; 0.0 without a prediction and for one with a reversed or empty span.

    Raises:
        ValueError: unknown ``reward`` or ``gold_spans``, or ``boundary`` without a duration.
    """
    if reward not in SPAN_REWARDS:
        raise ValueError(f"span_reward: expected {' or '.join(SPAN_REWARDS)}; got {reward!r}")
    if gold_spans not in GOLD_SPANS:
        raise ValueError(f"gold_spans: expected {' or '.join(GOLD_SPANS)}; got {gold_spans!r}")
    if reward == "boundary" and duration is None:
        raise ValueError("span_reward=boundary needs the clip's duration: set extra_info.duration")
    if pred is None or not are_valid(pred):
        return 0.0
    targets = [[span] for span in gold] if gold_spans == "max" else [list(gold)]
    if duration is None or reward == "iou":
        return max(temporal_iou(pred, target) for target in targets)
    return max(boundary_iou(pred, target, duration) for target in targets)


def to_seconds(spans: Sequence[Span], duration: float) -> tuple[Span, ...]:
    """Normalised spans in seconds.

    Args:
        spans: shares of the duration.
        duration: seconds, > 0.
    """
    return tuple((start * duration, end * duration) for start, end in spans)


def read_duration(extra_info: Mapping[str, Any]) -> float | None:
    """``extra_info.duration``: the clip's duration in seconds, None without one.

    Raises:
        ValueError: not a finite number > 0.
    """
    duration = extra_info.get("duration")
    if duration is None:
        return None
    number = float(duration) if not isinstance(duration, str | bool) and hasattr(duration, "__float__") else math.nan
    if not (0 < number <= MAX_SECONDS):
        raise ValueError(f"extra_info.duration: expected the clip's seconds, a number > 0; got {duration!r}")
    return number


def read_units(extra_info: Mapping[str, Any]) -> tuple[str, str]:
    """``extra_info.span_unit`` (of the gold spans) and ``extra_info.answer_unit`` (of the answer), seconds by default.

    Raises:
        ValueError: not one of ``UNITS``, or two different ones without a duration to convert by.
    """
    units = []
    for name in ("span_unit", "answer_unit"):
        unit = extra_info.get(name)
        unit = "seconds" if unit is None else unit
        if unit not in UNITS:
            raise ValueError(f"extra_info.{name}: expected {' or '.join(UNITS)}; got {unit!r}")
        units.append(unit)
    if units[0] != units[1] and read_duration(extra_info) is None:
        raise ValueError(
            f"extra_info.duration: gold spans are {units[0]}, answers {units[1]}; set the clip's duration in seconds"
        )
    return units[0], units[1]


def check_gold(spans: Sequence[Span] | None, text: object, unit: str, duration: float | None) -> tuple[Span, ...]:
    """The gold spans, checked.

    Args:
        spans: what was read.
        text: where from, for messages.
        unit: one of ``UNITS``.
        duration: seconds, None if unknown.

    Raises:
        ValueError: no span, a reversed or empty one, or one that lies behind the clip.
    """
    if not spans:
        bound = "[0, 1]" if unit == "normalised" else "seconds >= 0 or mm:ss"
        raise ValueError(f"{text!r} holds no span of times in {bound}; write [[start, end], …]")
    for start, end in spans:
        if start >= end:
            raise ValueError(f"span [{start:g}, {end:g}] is {'reversed' if start > end else 'empty'}; mend or drop it")
        late = duration is not None and unit == "seconds" and end > duration + MAX_GOLD_OVERHANG_SECONDS
        if late or (duration is not None and unit == "seconds" and start >= duration):
            raise ValueError(
                f"span [{start:g}, {end:g}] lies behind the clip's {duration:g} s; mend it, or extra_info.duration"
            )
    return tuple(spans)


def read_gold_spans(text: str, extra_info: Mapping[str, Any]) -> tuple[Span, ...]:
    """Gold spans of a record of temporal grounding, checked.

    Args:
        text: ground truth, in any form that ``read_spans`` reads.
        extra_info: the record's ``span_unit``, ``answer_unit``, ``duration``.

    Raises:
        ValueError: a faulty span, unit or duration.
    """
    unit, _ = read_units(extra_info)
    return check_gold(read_spans(text, unit), text, unit, read_duration(extra_info))


def read_gold_option_and_spans(text: str, extra_info: Mapping[str, Any]) -> tuple[str, tuple[Span, ...]]:
    """Gold option and gold spans of a record of grounded QA, checked.

    Args:
        text: ground truth, in any form that ``read_option_and_spans`` reads.
        extra_info: the record's ``span_unit``, ``answer_unit``, ``duration``.

    Raises:
        ValueError: no option, or a faulty span, unit or duration.
    """
    unit, _ = read_units(extra_info)
    option, spans = read_option_and_spans(text, unit)
    checked = check_gold(spans, text, unit, read_duration(extra_info))
    if not option:
        raise ValueError(f'{text!r} holds no option; write {{"answer": "A", "spans": [[start, end], …]}}')
    return option, checked
