"""Score of one response: task accuracy by problem type, plus format. Pure.

verl finds it by ``reward.custom_reward_function.path=pkg://verl_care.rewards.scorer``, ``name=compute_score``; the
scoring comes in as ``reward.custom_reward_function.reward_kwargs.scoring``.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verl_care.rewards import free_form, multiple_choice, numerical, ocr, regression, spans
from verl_care.rewards.format import format_reward
from verl_care.rewards.parsing import loggable, read_answer, read_ground_truth

SCORINGS = ("strict", "lenient")
"""``strict``: accuracy as published by Video-R1; ``lenient``: an answer that says the same in another form counts."""

RESULT_KEYS = ("score", "acc", "acc_strict", "acc_lenient", "acc_answer", "acc_iou", "format", "unparsed", "pred")
"""Keys of every result. verl takes the keys of a batch from its first rollout, so all rollouts have the same ones.
``acc_answer`` and ``acc_iou`` are what ``acc`` is made of; None where a problem type has no such part."""

_COMPONENTS = ("acc_answer", "acc_iou")
_NUMERIC_KEYS = tuple(name for name in RESULT_KEYS if name not in (*_COMPONENTS, "pred"))

GROUNDING = "temporal grounding"
GROUNDED_QA = "grounded QA"

DEFAULT_WEIGHTS: dict[str, dict[str, float]] = {
    "qa": {"answer": 1.0, "format": 1.0},
    "temporal_grounding": {"iou": 1.0, "format": 1.0},
    "grounded_qa": {"answer": 0.5, "iou": 0.5, "format": 1.0},
}
"""What a part of the answer weighs in the score, by kind of task; with these, score = acc + format. Those of ``qa`` are
Video-R1's (arXiv 2503.21776), the others are ours."""

_KINDS = {GROUNDING: "temporal_grounding", GROUNDED_QA: "grounded_qa"}


def _same_text(pred: str, gold: str) -> bool:
    return pred.split() == gold.split() or pred.casefold().split() == gold.casefold().split()


def _lenient_text(strict: Callable[[str, str], float]) -> Callable[[str, str, Sequence[str]], float | None]:
    return lambda pred, gold, options: 1.0 if _same_text(pred, gold) else strict(pred, gold)


_STRICT: dict[str, Callable[[str, str], float]] = {
    "multiple choice": multiple_choice.strict,
    "numerical": numerical.strict,
    "OCR": ocr.strict,
    "free-form": free_form.strict,
    "regression": regression.strict,
}

_LENIENT: dict[str, Callable[[str, str, Sequence[str]], float | None]] = {
    "multiple choice": multiple_choice.lenient,
    "numerical": lambda pred, gold, options: numerical.lenient(pred, gold),
    "OCR": _lenient_text(ocr.strict),
    "free-form": _lenient_text(free_form.strict),
    "regression": lambda pred, gold, options: regression.lenient(pred, gold),
}

PROBLEM_TYPES = (*_STRICT, GROUNDING, GROUNDED_QA)
"""Problem types: five by Video-R1's names (arXiv 2503.21776), and two whose answers hold times of the clip."""


@dataclass(frozen=True, slots=True)
class _Parts:
    """What was found in an answer, by one of the two scorings."""

    answer: float | None
    iou: float | None
    readable: bool

    def accuracy(self, weights: Mapping[str, float]) -> float:
        """Weighted mean of the parts, in [0, 1]; a part that is alone is the accuracy."""
        if self.answer is None or self.iou is None:
            return (self.answer if self.iou is None else self.iou) or 0.0
        weighted = weights["answer"] * self.answer + weights["iou"] * self.iou
        return min(1.0, weighted / (weights["answer"] + weights["iou"]))

    def at_least(self, other: _Parts) -> _Parts:
        """The better of both, part by part."""
        return _Parts(_larger(self.answer, other.answer), _larger(self.iou, other.iou), self.readable or other.readable)


def _larger(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else max(a, b)


def score_answer(pred: str, gold: str, problem_type: str, options: Sequence[str] = ()) -> tuple[float, float, bool]:
    """Both accuracies of an answer, and whether it could be read at all.

    Args:
        pred: answer of the response.
        gold: ground truth without tags.
        problem_type: one of Video-R1's five ``PROBLEM_TYPES``.
        options: the record's options, may be empty.

    Returns:
        Strict accuracy in [0, 1]; lenient accuracy in [0, 1], never below the strict one; whether the answer is one of
        its type: it names a letter, or a number, or is not empty.
    """
    if not pred:
        return 0.0, 0.0, False
    strict = _STRICT[problem_type](pred, gold)
    lenient = _LENIENT[problem_type](pred, gold, options)
    return strict, max(strict, lenient or 0.0), lenient is not None or strict > 0


def read_gold(
    ground_truth: str, problem_type: str, extra_info: Mapping[str, Any]
) -> tuple[str, tuple[spans.Span, ...]]:
    """Gold option (empty for temporal grounding) and gold spans of a record, checked.

    Raises:
        ValueError: a faulty ground truth, unit or duration.
    """
    if problem_type == GROUNDING:
        return "", spans.read_gold_spans(ground_truth, extra_info)
    return spans.read_gold_option_and_spans(ground_truth, extra_info)


def score_grounding(
    pred: str,
    gold: str,
    problem_type: str,
    extra_info: Mapping[str, Any],
    *,
    span_reward: str = "iou",
    gold_spans: str = "max",
) -> tuple[_Parts, _Parts, bool]:
    """Parts of an answer with times, by both scorings, and whether it has the form that is asked for.

    Args:
        pred: answer of the response, empty without one.
        gold: ground truth: spans, for grounded QA an option with spans.
        problem_type: ``temporal grounding`` or ``grounded QA``.
        extra_info: the record's ``span_unit``, ``answer_unit``, ``duration``, ``options``.
        span_reward: one of ``spans.SPAN_REWARDS``.
        gold_spans: one of ``spans.GOLD_SPANS``.

    Returns:
        Strict parts (the answer is a span, or an option and a span, and nothing else); lenient parts (it says so among
        words), none below the strict ones; whether the strict reading has spans that all end after they start and, for
        grounded QA, an option.

    Raises:
        ValueError: a faulty ground truth, unit or duration, or an unknown ``span_reward`` or ``gold_spans``.
    """
    gold_option, targets = read_gold(gold, problem_type, extra_info)
    span_unit, answer_unit = spans.read_units(extra_info)
    duration = spans.read_duration(extra_info)
    if span_unit != answer_unit and span_unit == "normalised":
        targets = spans.to_seconds(targets, duration or 1.0)
    # One unit on both sides: that of the gold spans where they agree, else seconds.
    length = 1.0 if span_unit == answer_unit == "normalised" else duration

    def iou(found: tuple[spans.Span, ...] | None) -> float:
        if found and span_unit != answer_unit and answer_unit == "normalised":
            found = spans.to_seconds(found, duration or 1.0)
        return spans.score_spans(found, targets, reward=span_reward, gold_spans=gold_spans, duration=length)

    if problem_type == GROUNDING:
        read, found = spans.read_spans(pred, answer_unit), spans.find_spans(pred, answer_unit)
        strict = _Parts(None, iou(read), read is not None)
        return strict, _Parts(None, iou(found), found is not None).at_least(strict), spans.are_valid(read)

    listed = extra_info.get("options")
    options = () if listed is None else list(listed)
    option, read = spans.read_option_and_spans(pred, answer_unit)
    correct, _, _ = score_answer(option, gold_option, "multiple choice", options)
    named = multiple_choice.read_letter(option, options) is not None or correct > 0
    strict = _Parts(correct, iou(read), named or read is not None)
    loose_option, found = spans.find_option_and_spans(pred, answer_unit)
    _, loose, loose_named = score_answer(loose_option, gold_option, "multiple choice", options)
    lenient = _Parts(loose, iou(found), loose_named or found is not None).at_least(strict)
    return strict, lenient, named and spans.are_valid(read)


def check_weights(weights: Mapping[str, Mapping[str, float]] | None) -> dict[str, dict[str, float]]:
    """``DEFAULT_WEIGHTS`` with those given in their places.

    Raises:
        ValueError: an unknown kind of task or part, a weight that is no finite number >= 0, or an answer that weighs
            nothing.
    """
    merged = {kind: dict(parts) for kind, parts in DEFAULT_WEIGHTS.items()}
    for kind, parts in (weights or {}).items():
        if kind not in merged:
            raise ValueError(f"weights: expected {', '.join(merged)}; got {kind!r}")
        for part, weight in parts.items():
            if part not in merged[kind]:
                raise ValueError(f"weights.{kind}: expected {', '.join(merged[kind])}; got {part!r}")
            if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 <= weight < math.inf:
                raise ValueError(f"weights.{kind}.{part}: expected a finite number >= 0; got {weight!r}")
            merged[kind][part] = float(weight)
        if not merged[kind].get("answer", 0.0) + merged[kind].get("iou", 0.0) > 0:
            raise ValueError(f"weights.{kind}: the answer weighs nothing; set answer or iou above 0")
    return merged


def _record_name(data_source: object, extra_info: Mapping[str, Any]) -> str:
    return f"{data_source}/{extra_info.get('index', '?')}"


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    scoring: str = "strict",
    span_reward: str = "iou",
    gold_spans: str = "max",
    weights: Mapping[str, Mapping[str, float]] | None = None,
    **kwargs: Any,
) -> dict[str, float | str | None]:
    """Score of one response, with verl's signature of a reward function.

    What the response says never raises: an answer that is missing, empty, over-long or not of its type has accuracy 0
    and ``unparsed`` 1.

    Args:
        data_source: the record's data source; named in errors.
        solution_str: decoded response.
        ground_truth: expected answer, with or without answer tags. Temporal grounding: spans, ``[[3.2, 7]]``; grounded
            QA: ``{"answer": "B", "spans": [[3.2, 7]]}``.
        extra_info: the record's ``problem_type``, ``index``; for multiple choice and grounded QA ``options``; for times
            ``span_unit``, ``answer_unit`` and ``duration``, see ``rewards.spans``.
        scoring: which accuracy is ``acc``, ``strict`` or ``lenient``.
        span_reward: one of ``spans.SPAN_REWARDS``: what ``acc_iou`` is.
        gold_spans: one of ``spans.GOLD_SPANS``: what several gold spans are.
        weights: of the parts of the score, see ``DEFAULT_WEIGHTS``, which stand where nothing is given.
        kwargs: what verl passes besides; not used.

    Returns:
        ``RESULT_KEYS``: ``score``, the weighted sum of answer, IoU and format (``acc`` + ``format`` by default);
        accuracies in [0, 1], for grounded QA the weighted mean of option and IoU; ``acc_answer`` and ``acc_iou``, the
        parts of ``acc``; ``format`` and ``unparsed`` 0.0 or 1.0; ``pred``, the answer's text, at most 256 characters.
        An answer with times has its format only if its spans are read strictly and end after they start.

    Raises:
        ValueError: a record without a sound ground truth, of an unknown problem type, or an unknown option.
    """
    extra_info = extra_info or {}
    problem_type = extra_info.get("problem_type")
    if problem_type not in PROBLEM_TYPES:
        raise ValueError(
            f"record {_record_name(data_source, extra_info)}: extra_info.problem_type is {problem_type!r}; "
            f"set one of {', '.join(PROBLEM_TYPES)}"
        )
    if not isinstance(ground_truth, str) or not read_ground_truth(ground_truth):
        raise ValueError(
            f"record {_record_name(data_source, extra_info)}: reward_model.ground_truth is {ground_truth!r}; "
            "set the expected answer as text"
        )
    if scoring not in SCORINGS:
        raise ValueError(f"scoring: expected {' or '.join(SCORINGS)}; got {scoring!r}")
    kind_weights = check_weights(weights)[_KINDS.get(problem_type, "qa")]

    pred = read_answer(solution_str)
    gold = read_ground_truth(ground_truth)
    format_ = format_reward(solution_str)
    if problem_type in _KINDS:
        try:
            strict_parts, lenient_parts, has_form = score_grounding(
                pred or "", gold, problem_type, extra_info, span_reward=span_reward, gold_spans=gold_spans
            )
        except ValueError as error:
            raise ValueError(f"record {_record_name(data_source, extra_info)}: {error}") from None
        if not has_form:
            format_ = 0.0
    else:
        options = extra_info.get("options")
        strict, lenient, readable = score_answer(
            pred or "", gold, problem_type, () if options is None else list(options)
        )
        strict_parts, lenient_parts = _Parts(strict, None, readable), _Parts(lenient, None, readable)

    parts = strict_parts if scoring == "strict" else lenient_parts
    answer, iou = parts.answer, parts.iou
    score = kind_weights["format"] * format_
    score += 0.0 if answer is None else kind_weights["answer"] * answer
    score += 0.0 if iou is None else kind_weights["iou"] * iou
    return {
        "score": score,
        "acc": parts.accuracy(kind_weights),
        "acc_strict": strict_parts.accuracy(kind_weights),
        "acc_lenient": lenient_parts.accuracy(kind_weights),
        "acc_answer": answer,
        "acc_iou": iou,
        "format": format_,
        "unparsed": float(not lenient_parts.readable),
        "pred": loggable(pred),
    }


def _finite(name: str, value: object) -> float:
    if isinstance(value, numbers.Real) or getattr(value, "ndim", None) == 0:
        number = float(value)  # type: ignore[arg-type]
        if math.isfinite(number):
            return number
    raise ValueError(f"custom_reward_function: {name}: expected a finite number; got {value!r}")


def normalise_result(result: object) -> dict[str, float | str | None]:
    """What a user's own reward function returned, in the keys of ``compute_score``.

    A number is both ``acc`` and ``score``. A dict must have ``acc``; its ``score`` is ``acc`` if not given, both other
    accuracies are ``acc``, both parts None, ``format`` and ``unparsed`` 0.0 and ``pred`` empty unless given. Other keys
    are left out, as every rollout of a batch must have the same ones.

    Args:
        result: number, or dict with ``acc`` in [0, 1].

    Returns:
        ``RESULT_KEYS``, as ``compute_score`` gives them.

    Raises:
        ValueError: no number and no dict, a dict without ``acc``, an ``acc`` outside [0, 1], a value that is no finite
            number.
    """
    if not isinstance(result, Mapping):
        if result is None or isinstance(result, str | bytes):
            raise ValueError(
                f"custom_reward_function: expected a number or a dict with acc; got {type(result).__name__} {result!r}"
            )
        result = {"acc": result}
    if result.get("acc") is None:
        raise ValueError(
            f"custom_reward_function: the result has no acc; got the keys {sorted(map(str, result))}. "
            "Add acc, the task accuracy in [0, 1]"
        )
    accuracy = _finite("acc", result["acc"])
    if not 0 <= accuracy <= 1:
        raise ValueError(
            f"custom_reward_function: acc: expected a number in [0, 1]; got {accuracy}. "
            "Return a dict with acc in [0, 1] and the reward as score"
        )
    defaults = {"score": accuracy, "acc": accuracy, "acc_strict": accuracy, "acc_lenient": accuracy}
    values: dict[str, float | str | None] = dict.fromkeys(RESULT_KEYS)
    for name in _NUMERIC_KEYS:
        value = result.get(name)
        values[name] = defaults.get(name, 0.0) if value is None else _finite(name, value)
    for name in _COMPONENTS:
        value = result.get(name)
        values[name] = None if value is None else _finite(name, value)
    pred = result.get("pred")
    values["pred"] = loggable("" if pred is None else str(pred))
    return values
