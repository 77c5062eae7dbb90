import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from verl_care.rewards.free_form import strict

texts = st.lists(
    st.sampled_from(["moving", "moves", "ball", "Ball!", "the", "cat's", "happily", "é", "x1"]), max_size=15
).map(" ".join)


@pytest.mark.parametrize(
    ("pred", "gold", "accuracy"),
    [
        ("the red ball", "The red ball.", 1.0),
        ("balls moving", "ball moves", 1.0),  # equal after stemming
        # unigrams 2 of 3 and 3; bigrams 1 of 2 and 2; longest common subsequence 2 of 3 and 3: (2/3 + 1/2 + 2/3) / 3
        ("the red ball", "the red cup", 11 / 18),
        # 3 of 3 unigrams, no bigram, subsequence of 1: (1 + 0 + 1/3) / 3
        ("ball red the", "the red ball", 4 / 9),
        # precision 1, recall 1/2 for unigrams and subsequence: 2/3; bigrams 1 of 1 and 3: 1/2
        ("red ball", "red ball moves left", (2 / 3 + 1 / 2 + 2 / 3) / 3),
        ("", "ball", 0.0),
        ("...", "ball", 0.0),
        ("\u7403", "\u7403", 0.0),  # no a-z or 0-9, so no words for ROUGE
    ],
)
def test_golden(pred, gold, accuracy):
    assert strict(pred, gold) == pytest.approx(accuracy, abs=1e-12)


@given(texts, texts)
def test_agrees_with_rouge_score(pred, gold):
    scores = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True).score(gold, pred)
    expected = sum(score.fmeasure for score in scores.values()) / 3
    assert strict(pred, gold) == pytest.approx(expected, abs=1e-12)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("pred", ["y" * 16_000, "a " * 8_000, "-" * 16_000, ("y" * 60 + " ") * 200])
def test_hostile_text(pred):
    assert 0.0 <= strict(pred, "a y red ball " * 50) <= 1.0
