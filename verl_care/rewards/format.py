"""Format reward: one think block, optional white space, one answer block, and nothing else. Pure."""

from __future__ import annotations

from verl_care.rewards.parsing import CLOSE, OPEN

_THINK_OPEN = "<think>"
_THINK_CLOSE = "</think>"


def format_reward(text: object) -> float:
    """1.0 if the whole response is a think block and an answer block, else 0.0.

    Equals ``re.fullmatch(r"<think>.*?</think>\\s*<answer>.*?</answer>", text, re.DOTALL)`` (tulerfeng/Video-R1,
    ``grpo.py``; arXiv 2503.21776), so nested and repeated tags pass and white space around the whole fails, but in
    linear time.

    Args:
        text: decoded response; anything but a string has no format.
    """
    if not isinstance(text, str) or not text.startswith(_THINK_OPEN) or not text.endswith(CLOSE):
        return 0.0
    last = len(text) - len(CLOSE)
    close = text.find(_THINK_CLOSE, len(_THINK_OPEN))
    while close >= 0:
        answer = close + len(_THINK_CLOSE)
        while answer < last and text[answer].isspace():
            answer += 1
        if text.startswith(OPEN, answer):
            return 1.0 if answer + len(OPEN) <= last else 0.0
        close = text.find(_THINK_CLOSE, answer)
    return 0.0
