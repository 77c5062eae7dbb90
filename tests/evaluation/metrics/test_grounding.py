import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_care.evaluation.metrics import grounding, metric_of
from verl_care.evaluation.metrics.base import Scored


def span_item(item, key="charades_sta/0", gold="[[2, 6]]"):
    return item(key=key, problem_type="temporal grounding", ground_truth=gold, options=(), duration=30.0)


@pytest.mark.parametrize(
    ("answer", "strict", "lenient", "official"),
    [
        ("2 to 6", 1.0, 1.0, 1.0),
        ("4 to 8", 1 / 3, 1 / 3, 1 / 3),  # 2 s of 6 s
        ("2 - 4", 0.5, 0.5, 0.5),
        ("00:02 - 00:06", 1.0, 1.0, 1.0),
        ('{"start_time": "2.0", "end_time": "6.0"}', 1.0, 1.0, 1.0),
        # Reversed: nothing here, swapped by the official scorer.
        ("6 to 2", 0.0, 0.0, 1.0),
        # Without length: nothing anywhere.
        ("4 to 4", 0.0, 0.0, 0.0),
        ("It runs from 2 to 6 s.", 0.0, 1.0, 1.0),
        ("20 to 26", 0.0, 0.0, 0.0),
        ("no idea", 0.0, 0.0, 0.0),
        (None, 0.0, 0.0, 0.0),
    ],
)
def test_iou_by_reading(item, answer, strict, lenient, official):
    values, _ = grounding.score(span_item(item), answer)
    found = [values[reading]["score"] for reading in ("strict", "lenient", "official")]
    assert found == [pytest.approx(strict), pytest.approx(lenient), pytest.approx(official)]


times = st.integers(0, 40)
proper = st.tuples(times, times).map(sorted).filter(lambda span: span[0] < span[1])


@given(proper, proper)
def test_iou_against_counted_seconds(pred, gold):
    predicted, wanted = set(range(*pred)), set(range(*gold))
    # The hull equals the union where they overlap, and where they do not, nothing is shared.
    expected = len(predicted & wanted) / len(predicted | wanted)
    assert grounding.hull_iou(tuple(pred), tuple(gold)) == pytest.approx(expected)


def test_the_hull_of_two_equal_points_is_no_error():
    assert grounding.hull_iou((3, 3), (3, 3)) == 0.0


@given(st.lists(st.integers(0, 100), min_size=1, max_size=30))
def test_recalls_count_items_at_and_above_their_thresholds(percents):
    from verl_care.evaluation.items import Item

    scored = [
        Scored(
            item=Item(
                key=f"charades_sta/{n}", benchmark="charades_sta", problem_type="temporal grounding", ground_truth="",
                options=(), video="v", info={}, messages=[],
            ),
            values={"strict": {"score": percent / 100}},
            readable=True,
        )
        for n, percent in enumerate(percents)
    ]  # fmt: skip
    found = grounding.figures(scored, "strict")
    for threshold in (30, 50, 70):
        expected = len([p for p in percents if p >= threshold]) / len(percents)
        assert found[f"R@1 IoU={threshold / 100}"] == pytest.approx(expected)
    assert found["mIoU"] == pytest.approx(sum(percents) / len(percents) / 100)


def test_items_that_fail_lower_recall_and_miou(item):
    metric = metric_of("charades_sta")
    scored = []
    for number, answer in enumerate(["2 to 6", None]):
        entry = span_item(item, key=f"charades_sta/{number}")
        values, readable = metric.score(entry, answer)
        scored.append(Scored(item=entry, values=values, readable=readable))
    assert metric.figures(scored, "strict") == {
        "R@1 IoU=0.3": 0.5, "R@1 IoU=0.5": 0.5, "R@1 IoU=0.7": 0.5, "mIoU": 0.5
    }  # fmt: skip
