"""Accuracy of multiple-choice answers. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

_HEAD_CHARS = 512
_MAX_LABEL_CHARS = 3
_MARKS = " \t*_`\"'$"

# Text is collapsed to single spaces first, so that no two adjacent parts of a pattern can share a run of spaces.
_LEAD_IN = re.compile(
    r"(?:(?:the |my )?(?:correct |final |best )?(?:answer|option|choice)(?: is)?(?: option| choice)? ?[:=]? ?)",
    re.IGNORECASE,
)
_LABEL = re.compile(r"(?:\(([A-Za-z])\)|\[([A-Za-z])\]|([A-Za-z])(?=$|[.):,;\]]| [-–—:]))")
_LABELS = re.compile(r"(?:^|(?<=[\s(\[,/]))([A-Z])(?=[.):\]])")
_WORD = re.compile(r"\w+")
_OPTION = re.compile(r"\s*[(\[]?([A-Za-z])\s*[.):\]]\s*(.*)", re.DOTALL)


def split_option(option: str) -> tuple[str, str] | None:
    """Letter and text of an option such as ``A. cup``, ``A) cup`` or ``(A) cup``; None for one without a letter."""
    match = _OPTION.fullmatch(option)
    return (match.group(1).upper(), match.group(2).strip()) if match else None


def strict(pred: str, gold: str) -> float:
    """1.0 if the stripped texts are equal, case-sensitive, else 0.0 (tulerfeng/Video-R1, ``grpo.py``)."""
    return float(pred.strip() == gold.strip())


def read_letter(text: str, options: Sequence[str] = ()) -> str | None:
    """The one option letter that an answer names.

    Reads ``B``, ``b``, ``B.``, ``(B)``, ``[B]``, ``**B**``, ``B. cup``, ``B: cup``, ``B - cup``, ``Answer: (B)``, ``the
    answer is B`` and, with options, an option's own text. An article is no letter (``A cup``), and an answer that
    names two letters (``A or B``, ``A. cup, B. pen``) names none.

    Args:
        text: answer, any length; the first 512 characters count.
        options: the record's options; with them, other letters are no answer.

    Returns:
        A capital letter, or None.
    """
    first, _, rest = text[: 4 * _HEAD_CHARS].strip().partition("\n")
    if rest and len(first) <= _MAX_LABEL_CHARS:
        first += ","
    head = " ".join(f"{first} {rest}".split())[:_HEAD_CHARS].strip(_MARKS)
    pairs = [pair for pair in map(split_option, options) if pair]
    letters = {letter for letter, _ in pairs}
    for letter, option_text in pairs:
        said = " ".join(option_text.split()).casefold().rstrip(".")
        if said and head.casefold().rstrip(".") in (said, f"{letter} {said}".casefold()):
            return letter

    lead_in = _LEAD_IN.match(head)
    label = _LABEL.match(head[lead_in.end() :].lstrip(_MARKS).replace("*", "") if lead_in else head.replace("*", ""))
    if label is None:
        return None
    letter = next(group for group in label.groups() if group).upper()
    words = _WORD.findall(head)
    named = {word.upper() for word in words if len(word) == 1 and word.isalpha()}
    only_letters = all(len(word) == 1 or word.lower() in ("and", "or", "both") for word in words)
    labels = {other for other in _LABELS.findall(head) if not letters or other in letters}
    if (only_letters and len(named) > 1) or len(labels | {letter}) > 1:
        return None
    return letter if not letters or letter in letters else None


def lenient(pred: str, gold: str, options: Sequence[str] = ()) -> float | None:
    """1.0 if the letter that ``pred`` names is the gold one, else 0.0; None if it names no letter.

    Args:
        pred: answer of the response.
        gold: letter, or anything that ``read_letter`` understands.
        options: the record's options, may be empty.
    """
    letter = read_letter(pred, options)
    if letter is None:
        return None
    return float(letter == (read_letter(gold, options) or gold.strip()))
