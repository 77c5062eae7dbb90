"""What a response says inside its tags. Pure, and linear in the length of the text.

Plain searches instead of regular expressions: a response may be 100 KB of anything, and a pattern with two lazy parts
takes quadratic time on it.
"""

from __future__ import annotations

OPEN = "<answer>"
CLOSE = "</answer>"

MAX_ANSWER_CHARS = 16_384
"""Longest answer that is read. The published code has no bound; its responses end at 768 tokens, far below this one."""

MAX_PRED_CHARS = 256
"""Longest answer text that is kept for logs and majority votes."""


def find_answer(text: str) -> str | None:
    """The first ``<answer>…</answer>`` of a text, stripped; None without one.

    Equals the first match of ``<answer>\\s*(.*?)\\s*</answer>`` over all lines (tulerfeng/Video-R1, ``grpo.py``).
    """
    start = text.find(OPEN)
    if start < 0:
        return None
    start += len(OPEN)
    end = text.find(CLOSE, start)
    return None if end < 0 else text[start:end].strip()


def read_answer(text: object) -> str | None:
    """The answer of a response as the rewards read it.

    Args:
        text: decoded response; anything but a string counts as no response.

    Returns:
        The first answer, stripped; None when there is none, when it is empty or longer than ``MAX_ANSWER_CHARS``, and
        when it is no text (a NUL or a lone surrogate in it).
    """
    answer = find_answer(text) if isinstance(text, str) else None
    if not answer or len(answer) > MAX_ANSWER_CHARS or "\0" in answer:
        return None
    return answer if is_utf8(answer) else None


def is_utf8(text: str) -> bool:
    """Whether a string can be written as UTF-8: one with a lone surrogate cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def read_ground_truth(text: str) -> str:
    """A record's ground truth without its answer tags, if it has any, stripped."""
    inner = find_answer(text)
    return text.strip() if inner is None else inner


def loggable(text: str | None) -> str:
    """The text cut to ``MAX_PRED_CHARS`` and made valid UTF-8 (lone surrogates become ``?``); None becomes empty."""
    return (text or "")[:MAX_PRED_CHARS].encode("utf-8", "replace").decode("utf-8")
