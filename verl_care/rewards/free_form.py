"""Accuracy of free-form answers: mean of three ROUGE F-measures. Pure."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

from verl_care.rewards.lazy import IMPORTING

_MAX_STEMMED_CHARS = 64


class _Stemmer:
    """Porter stemmer of rouge-score with a memory.

    Words over 64 characters stay whole: NLTK's stemmer recurses once for each ``y`` in a row.
    """

    def __init__(self) -> None:
        with IMPORTING:
            from nltk.stem.porter import PorterStemmer

        self._stem = lru_cache(maxsize=65_536)(PorterStemmer().stem)

    def stem(self, word: str) -> str:
        return word if len(word) > _MAX_STEMMED_CHARS else self._stem(word)


@cache
def _rouge() -> tuple[Any, Any]:
    """Tokenizer and scorer of rouge-score, made at first use: the import takes NLTK in."""
    with IMPORTING:
        from rouge_score import rouge_scorer, tokenize, tokenizers

    class Tokenizer(tokenizers.Tokenizer):
        stemmer = _Stemmer()

        def tokenize(self, text: str) -> list[str]:
            return tokenize.tokenize(text, self.stemmer)

    tokenizer = Tokenizer()
    return tokenizer, rouge_scorer.RougeScorer(["rouge1", "rouge2"], tokenizer=tokenizer)


def strict(pred: str, gold: str) -> float:
    """Mean of the ROUGE-1, ROUGE-2 and ROUGE-L F-measures with stemming, in [0, 1] (tulerfeng/Video-R1, ``grpo.py``).

    By rouge-score, whose words are runs of a-z and 0-9: a text in another script has none and scores 0.0. The longest
    common subsequence comes from rapidfuzz, which needs no table of Python lists for it.
    """
    with IMPORTING:
        from rapidfuzz.distance import LCSseq
        from rouge_score.scoring import fmeasure

    tokenizer, scorer = _rouge()
    pred_tokens, gold_tokens = tokenizer.tokenize(pred), tokenizer.tokenize(gold)
    if not pred_tokens or not gold_tokens:
        return 0.0
    ngrams = scorer.score(gold, pred)
    common = LCSseq.similarity(gold_tokens, pred_tokens)
    rouge_l = fmeasure(common / len(pred_tokens), common / len(gold_tokens))
    mean = (ngrams["rouge1"].fmeasure + ngrams["rouge2"].fmeasure + rouge_l) / 3
    return min(1.0, max(0.0, mean))
