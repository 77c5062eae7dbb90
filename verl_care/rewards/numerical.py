"""Accuracy of numerical answers, and how a number is read. Pure."""

from __future__ import annotations

import logging
import math
import re
import threading

from verl_care.rewards.lazy import IMPORTING

logger = logging.getLogger(__name__)

_DECIMALS = 2
_HEAD_CHARS = 512
_MAX_LATEX_CHARS = 64

_FRACTION = re.compile(r"([-+]?\d{1,30}(?:\.\d{1,30})?) ?/ ?([-+]?\d{1,30}(?:\.\d{1,30})?)")
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+(?!\d))?")
_COMMAND = re.compile(r"\\([a-zA-Z]+|.)", re.DOTALL)
_LATEX_COMMANDS = frozenset(
    ("frac", "dfrac", "tfrac", "sqrt", "pi", "times", "cdot", "div", "left", "right", "boxed")
    + (",", ";", "!", " ", "%", "$", "(", ")", "[", "]")
)
_LATEX_REST = re.compile(r"[0-9+\-/().,{}\[\]\s^%$]*")
_EXPONENT = re.compile(r"\^(?:\d|\{-?\d{1,2}\})(?!\d)")
_latex_lock = threading.Lock()


def parse_number(text: str) -> float | None:
    """The number that a text is, as published: commas dropped, then Python's ``float``.

    Infinities and NaN are None; the published code lets them through, where they equal no finite ground truth.
    """
    try:
        number = float(text.replace(",", ""))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _parse_latex(text: str) -> float | None:
    """The value of a LaTeX number, by math-verify.

    math-verify stops a runaway expression by SIGALRM, which only the main thread may use, and rewards run in threads.
    So what could run away never reaches it: at most 64 characters, digits and the commands of a plain number, and at
    most one power, its exponent a number of two digits.
    """
    if len(text) > _MAX_LATEX_CHARS or not any(mark in text for mark in "\\^$"):
        return None
    powers = text.count("^")
    if powers > 1 or powers != len(_EXPONENT.findall(text)):
        return None
    if not _LATEX_COMMANDS.issuperset(_COMMAND.findall(text)) or not _LATEX_REST.fullmatch(_COMMAND.sub("", text)):
        return None

    with IMPORTING:
        import math_verify
        import math_verify.parser

    # The reason that its one-time warning about a missing time limit asks for is in the docstring above.
    math_verify.parser.TIMEOUT_WARNING_SHOWN = True
    inner = text.replace(r"\(", "").replace(r"\)", "").replace(r"\[", "").replace(r"\]", "").replace("$", "")
    config = [math_verify.LatexExtractionConfig()]
    try:
        # The ANTLR grammar behind it keeps caches that threads share.
        with _latex_lock:
            parsed = math_verify.parse(f"${inner}$", config, parsing_timeout=None)
            value = float(parsed[0]) if parsed and not isinstance(parsed[0], str) else math.nan
    except Exception as error:
        # Whatever the parser or sympy trips over, the answer is not a number; the caller counts it as unparsed.
        logger.debug("math-verify could not read %r: %r", text, error)
        return None
    return value if math.isfinite(value) else None


def read_number(text: str) -> float | None:
    """The one number that an answer names.

    Reads what ``parse_number`` reads, and a currency sign before or a percent sign after the number (both dropped),
    ``3/4``, LaTeX (``\\frac{3}{4}``, ``3.2 \\times 10^{5}``), and a number among words (``about 3 cups``). An answer
    with two numbers names none.

    Args:
        text: answer, any length; one of more than 512 characters names none.

    Returns:
        A finite number, or None.
    """
    text = text.strip().replace("\u2212", "-").replace(r"\%", "%").replace("{,}", ",")
    if len(text) > _HEAD_CHARS:
        return parse_number(text)
    text = text.rstrip(".").strip()
    number = parse_number(text.lstrip("$€£¥ ").rstrip("% "))
    if number is not None:
        return number
    fraction = _FRACTION.fullmatch(text)
    if fraction:
        numerator, denominator = map(float, fraction.groups())
        return numerator / denominator if denominator else None
    number = _parse_latex(text)
    if number is not None:
        return number
    if "\\" in text or "^" in text:
        return None
    found = _NUMBER.findall(text)
    return parse_number(found[0]) if len(found) == 1 else None


def _has_decimal(text: str) -> bool:
    return "." in text or "," in text


def strict(pred: str, gold: str) -> float:
    """1.0 if both numbers agree to two decimals, else 0.0 (tulerfeng/Video-R1, ``grpo.py``).

    As published, 0.0 whenever exactly one of the texts has a point or a comma: ``3`` is not ``3.0``.
    """
    if _has_decimal(pred) != _has_decimal(gold):
        return 0.0
    a, b = parse_number(pred), parse_number(gold)
    return float(a is not None and b is not None and round(a, _DECIMALS) == round(b, _DECIMALS))


def lenient(pred: str, gold: str) -> float | None:
    """1.0 if both numbers, as ``read_number`` reads them, agree to two decimals, else 0.0; None if ``pred`` is none."""
    a, b = read_number(pred), read_number(gold)
    if a is None:
        return None
    return float(b is not None and round(a, _DECIMALS) == round(b, _DECIMALS))
