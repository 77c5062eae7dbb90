"""SIRI: a response budget that shrinks and grows in cycles. Pure.

Source: arXiv 2509.25176. A response is judged by what stands within its budget: sampling ends there, so that an answer
beyond it does not exist and earns nothing.
"""

from __future__ import annotations

import math

from verl_care.config import SiriConfig

MAX_TOKENS_COLUMN = "care_max_tokens"
"""Column of a training row: tokens that its responses may have. Rows of a validation do not have it."""


def length_budget(step: int, config: SiriConfig, *, response_length: int, total_steps: int) -> int:
    """Tokens that a response may have at a step.

    With t the steps since the first, T the period, and mid and half of L_max and L_min:

    cosine:        mid + half cos(2 pi t / T)
    stair:         L_max in the first half of a period, L_min in the second
    stair_cosine:  phi = 2 pi (t mod T) / T; L_max up to pi/4 and from 7 pi/4, L_min from 3 pi/4 to 5 pi/4, a cosine of
                   half the period between

    Args:
        step: from 1.
        config: schedule, period, and both lengths.
        response_length: longest response that the run allows, tokens; L_max where the config leaves it open.
        total_steps: of the run; a third of them is the period where the config leaves it open.
    """
    longest = min(config.max_tokens or response_length, response_length)
    shortest = min(config.min_tokens or max(1, longest // 2), longest)
    period = config.period or max(2, round(total_steps / 3))
    phase = 2 * math.pi * ((step - 1) % period) / period
    mid, half = (longest + shortest) / 2, (longest - shortest) / 2
    if config.schedule == "cosine":
        return round(mid + half * math.cos(phase))
    if config.schedule == "stair":
        return longest if phase < math.pi else shortest
    if phase < math.pi / 4 or phase >= 7 * math.pi / 4:
        return longest
    if phase < 3 * math.pi / 4:
        return round(mid + half * math.cos(2 * (phase - math.pi / 4)))
    if phase < 5 * math.pi / 4:
        return shortest
    return round(mid + half * math.cos(2 * (phase - 3 * math.pi / 4)))
