"""Score of one response: task accuracy by problem type, plus format. Pure.

verl finds it by ``reward.custom_reward_function.path=pkg://verl_care.rewards.scorer``, ``name=compute_score``; the
scoring comes in as ``reward.custom_reward_function.reward_kwargs.scoring``.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from verl_care.rewards import free_form, multiple_choice, numerical, ocr, regression
from verl_care.rewards.format import format_reward
from verl_care.rewards.parsing import loggable, read_answer, read_ground_truth

SCORINGS = ("strict", "lenient")
"""``strict``: accuracy as published by Video-R1; ``lenient``: an answer that says the same in another form counts."""

RESULT_KEYS = ("score", "acc", "acc_strict", "acc_lenient", "format", "unparsed", "pred")
"""Keys of every result. verl takes the keys of a batch from its first rollout, so all rollouts have the same ones."""

_NUMERIC_KEYS = RESULT_KEYS[:-1]


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

PROBLEM_TYPES = tuple(_STRICT)
"""Problem types by Video-R1's names (arXiv 2503.21776)."""


def score_answer(pred: str, gold: str, problem_type: str, options: Sequence[str] = ()) -> tuple[float, float, bool]:
    """Both accuracies of an answer, and whether it could be read at all.

    Args:
        pred: answer of the response.
        gold: ground truth without tags.
        problem_type: one of ``PROBLEM_TYPES``.
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


def _record_name(data_source: object, extra_info: Mapping[str, Any]) -> str:
    return f"{data_source}/{extra_info.get('index', '?')}"


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    scoring: str = "strict",
    **kwargs: Any,
) -> dict[str, float | str]:
    """Score of one response, with verl's signature of a reward function.

    What the response says never raises: an answer that is missing, empty, over-long or not of its type has accuracy 0
    and ``unparsed`` 1.

    Args:
        data_source: the record's data source; named in errors.
        solution_str: decoded response.
        ground_truth: expected answer, with or without answer tags.
        extra_info: the record's ``problem_type``, ``index`` and, for multiple choice, ``options``.
        scoring: which accuracy is ``acc``, ``strict`` or ``lenient``.
        kwargs: what verl passes besides; not used.

    Returns:
        ``RESULT_KEYS``: ``score`` = ``acc`` + ``format``; accuracies in [0, 1]; ``format`` and ``unparsed`` 0.0 or 1.0;
        ``pred``, the answer's text, at most 256 characters.

    Raises:
        ValueError: a record without ground truth, of an unknown problem type, or an unknown scoring.
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

    pred = read_answer(solution_str)
    options = extra_info.get("options")
    strict, lenient, readable = score_answer(
        pred or "", read_ground_truth(ground_truth), problem_type, () if options is None else list(options)
    )
    accuracy = strict if scoring == "strict" else lenient
    format_ = format_reward(solution_str)
    return {
        "score": accuracy + format_,
        "acc": accuracy,
        "acc_strict": strict,
        "acc_lenient": lenient,
        "format": format_,
        "unparsed": float(not readable),
        "pred": loggable(pred),
    }


def _finite(name: str, value: object) -> float:
    if isinstance(value, numbers.Real) or getattr(value, "ndim", None) == 0:
        number = float(value)  # type: ignore[arg-type]
        if math.isfinite(number):
            return number
    raise ValueError(f"custom_reward_function: {name}: expected a finite number; got {value!r}")


def normalise_result(result: object) -> dict[str, float | str]:
    """What a user's own reward function returned, in the keys of ``compute_score``.

    A number is both ``acc`` and ``score``. A dict must have ``acc``; its ``score`` is ``acc`` if not given, both other
    accuracies are ``acc``, ``format`` and ``unparsed`` 0.0 and ``pred`` empty unless given. Other keys are left out, as
    every rollout of a batch must have the same ones.

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
    values: dict[str, float | str] = {}
    for name in _NUMERIC_KEYS:
        value = result.get(name)
        values[name] = defaults.get(name, 0.0) if value is None else _finite(name, value)
    pred = result.get("pred")
    values["pred"] = loggable("" if pred is None else str(pred))
    return values
