import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_care.evaluation.metrics import next_gqa
from verl_care.evaluation.metrics.base import Scored


def published(loc, span):
    """doc-doc/NExT-GQA, ``eval_ground.py``: overlap of a gold and a predicted span, as its formulas stand."""
    if span[0] == span[1]:
        return 0.0, float(loc[0] <= span[0] <= loc[1])
    hull = max(loc[1], span[1]) - min(loc[0], span[0])
    shared = min(loc[1], span[1]) - max(loc[0], span[0])
    return shared / hull, shared / (span[1] - span[0])


times = st.integers(0, 60)
golds = st.lists(st.tuples(times, times).map(sorted).filter(lambda s: s[0] < s[1]), min_size=1, max_size=4)


@given(golds, st.tuples(times, times).map(sorted))
def test_overlaps_against_the_published_formulas(gold, pred):
    pairs = [published(loc, pred) for loc in gold]
    # Their maximum begins at 0, so what is negative for spans apart never shows.
    expected = max(0.0, *(iou for iou, _ in pairs)), max(0.0, *(iop for _, iop in pairs))
    assert next_gqa.best_overlap([tuple(pred)], gold, point_counts=True) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("pred", "iou", "iop", "official_iop"),
    [
        ((3, 7), 0.5, 1.0, 1.0),  # 4 s of 8 s
        ((0, 10), 0.8, 0.8, 0.8),
        ((5, 5), 0.0, 0.0, 1.0),  # a point inside: the best IoP there is, if one lets it
        ((20, 20), 0.0, 0.0, 0.0),
        ((7, 3), 0.0, 0.0, 0.0),
        ((12, 20), 0.0, 0.0, 0.0),
    ],
)
def test_overlap_at_its_corners(pred, iou, iop, official_iop):
    assert next_gqa.overlap(pred, (1, 9)) == (pytest.approx(iou), pytest.approx(iop))
    assert next_gqa.overlap(pred, (1, 9), point_counts=True)[1] == pytest.approx(official_iop)


def test_iou_and_iop_are_maximised_by_themselves():
    # Best IoU with the long span (8 / 20), best IoP with the short one (whole).
    assert next_gqa.best_overlap([(0, 8)], [(0, 20), (0, 8.5)]) == (pytest.approx(8 / 8.5), 1.0)


@pytest.mark.parametrize(
    ("answer", "right", "grounded"),
    [
        ('{"answer": "B", "start_time": 3, "end_time": 7}', 1, 1),
        ("B; 3 to 7", 1, 1),
        ("A; 3 to 7", 0, 0),
        ("B; 8 to 20", 1, 0),  # IoP 1/12
        ("B", 1, 0),
        ("B; 7 to 3", 1, 0),
        ("", 0, 0),
    ],
)
def test_acc_gqa_needs_option_and_span(item, answer, right, grounded):
    gold = json.dumps({"answer": "B", "spans": [[1, 9]]})
    entry = item(key="nextgqa/0", problem_type="grounded QA", ground_truth=gold)
    values, _ = next_gqa.score(entry, answer)
    assert (values["strict"]["answer"], values["strict"]["score"]) == (right, grounded)


def test_the_table_has_the_official_names(item):
    gold = json.dumps({"answer": "B", "spans": [[1, 9]]})
    scored = []
    for number, answer in enumerate(["B; 3 to 7", "B; 0 to 20", "A; 1 to 9", None]):
        entry = item(key=f"nextgqa/{number}", problem_type="grounded QA", ground_truth=gold)
        values, readable = next_gqa.score(entry, answer)
        scored.append(Scored(item=entry, values=values, readable=readable))
    # IoU 0.5, 0.4, 1, 0; IoP 1, 0.4, 1, 0.
    assert next_gqa.figures(scored, "strict") == {
        "Acc@QA": 0.5,
        "mIoP": pytest.approx(0.6),
        "IoP@0.3": 0.75,
        "IoP@0.5": 0.5,
        "mIoU": pytest.approx(0.475),
        "IoU@0.3": 0.75,
        "IoU@0.5": 0.5,
    }
