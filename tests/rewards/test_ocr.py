import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_care.rewards.ocr import strict, word_error_rate

texts = st.lists(st.sampled_from(["a", "b", "A", "\n", "\t", "é", "  "]), max_size=12).map(" ".join)


def edit_distance(a, b):
    """Wagner-Fischer, a row at a time."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


@pytest.mark.parametrize(
    ("pred", "gold", "accuracy"),
    [
        ("NO EXIT", "NO EXIT", 1.0),
        ("no EXIT", "NO EXIT", 0.5),  # case-sensitive: 1 substitution in 2 words
        ("NO\n EXIT", "NO EXIT", 1.0),
        ("STOP", "STOP the car now", 0.25),  # 3 deletions in 4 words
        ("a b c d e f", "a b c d", 0.5),  # 2 insertions in 4 words
        ("a b c d e f g", "a b c d", 0.25),
        ("a b c d e f g h", "a b c d", 0.0),
        ("x y z w", "a b", 0.0),
        ("", "a", 0.0),
    ],
)
def test_golden(pred, gold, accuracy):
    assert strict(pred, gold) == pytest.approx(accuracy, abs=1e-12)


@given(texts, texts)
def test_agrees_with_the_word_edit_distance(pred, gold):
    expected = edit_distance(gold.split(), pred.split()) / max(1, len(gold.split()))
    rate = word_error_rate(pred, gold)
    assert min(1.0, rate) == pytest.approx(min(1.0, expected), abs=1e-12)
    assert 0.0 <= strict(pred, gold) <= 1.0


@pytest.mark.timeout(10)
def test_hostile_length():
    assert strict("a " * 500_000, "a b c") == 0.0
