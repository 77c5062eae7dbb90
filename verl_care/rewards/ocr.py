"""Accuracy of transcriptions: one minus the word error rate. Pure."""

from __future__ import annotations

from verl_care.rewards.lazy import IMPORTING


def word_error_rate(pred: str, gold: str) -> float:
    """Edit distance between the words, over max(1, words of ``gold``); case-sensitive, words split at white space.

    Without gold words the rate is the number of words in ``pred``. Computed by jiwer, except where ``pred`` has twice
    the words of ``gold`` or more: then the rate is at least 1, and 1.0 is returned: hostile lengths cost nothing.

    Args:
        pred: transcription, any length.
        gold: transcription it should be.

    Returns:
        The rate, >= 0; exact below 1.
    """
    pred_words, gold_words = pred.split(), gold.split()
    if not gold_words:
        return float(len(pred_words))
    if not pred_words or len(pred_words) >= 2 * len(gold_words):
        return 1.0
    with IMPORTING:
        import jiwer

    # jiwer splits at blanks alone and would take "a\nb" for one word.
    return jiwer.process_words(" ".join(gold_words), " ".join(pred_words)).wer


def strict(pred: str, gold: str) -> float:
    """1 - word error rate, clipped to [0, 1] (tulerfeng/Video-R1, ``grpo.py``)."""
    return min(1.0, max(0.0, 1.0 - word_error_rate(pred, gold)))
