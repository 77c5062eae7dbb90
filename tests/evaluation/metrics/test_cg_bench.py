import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_care.evaluation.metrics import cg_bench
from verl_care.evaluation.metrics.base import Scored

times = st.integers(0, 60)
intervals = st.lists(st.tuples(times, times).map(sorted).filter(lambda span: span[0] < span[1]), min_size=1, max_size=5)


def seconds_of(spans):
    """Whole seconds that are covered: overlaps and touching spans count once."""
    return {second for start, end in spans for second in range(start, end)}


def clue_item(item, gold, **info):
    return item(key="cgbench_miou/0", problem_type="temporal grounding", ground_truth=json.dumps(gold), **info)


@given(intervals, intervals)
def test_iou_of_intervals_against_counted_seconds(item, pred, gold):
    a, b = seconds_of(pred), seconds_of(gold)
    expected = len(a & b) / len(a | b)
    answer = json.dumps({"spans": pred})
    values, readable = cg_bench.score_clues(clue_item(item, gold), answer)
    assert readable
    assert values["strict"]["score"] == values["lenient"]["score"] == pytest.approx(expected)
    fenced = "```json\n" + json.dumps({"result": pred}) + "\n```"
    assert cg_bench.score_clues(clue_item(item, gold), fenced)[0]["official"]["score"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "strict", "official"),
    [
        ("10 to 20", 0.5, 0.5),  # 5 s of 10 s
        ("between 10 and 20", 0.5, 0.5),
        ("[[10, 15], [15, 25]]", 1 / 3, 1 / 3),
        ("20 to 10", 0.0, 0.0),
        ("15 to 15", 0.0, 0.0),
        ("10", 0.0, 0.0),
        ("", 0.0, 0.0),
        # A sixth interval does not count, though it is the only right one; the official code takes it:
        # 5 s of 5 + 5 s.
        ("0 to 1, 1 to 2, 2 to 3, 3 to 4, 4 to 5, 15 to 20", 0.0, 0.5),
    ],
)
def test_iou_at_its_corners(item, answer, strict, official):
    values, _ = cg_bench.score_clues(clue_item(item, [[15, 20]]), answer)
    assert (values["strict"]["score"], values["official"]["score"]) == (pytest.approx(strict), pytest.approx(official))


@pytest.mark.parametrize(
    ("answer", "strict", "lenient", "official"),
    [
        ("B", 1, 1, 1),
        ("B. pen", 0, 1, 1),
        ('```json\n{"result": "B"}\n```', 0, 0, 1),
        ('```json\n{"result": "A"}\n```', 0, 0, 0),
        ("A or B", 0, 0, 1),  # names both: the official code finds the right one among them
        ("", 0, 0, 0),
    ],
)
def test_choices_as_the_official_scorer_reads_them(item, answer, strict, lenient, official):
    values, _ = cg_bench.score_choice(item(key="cgbench/0"), answer)
    assert [values[name]["score"] for name in ("strict", "lenient", "official")] == [strict, lenient, official]


def scored_by(score, make, answers):
    out = []
    for number, answer in enumerate(answers):
        entry = make(id=str(number))
        values, readable = score(entry, answer)
        out.append(Scored(item=entry, values=values, readable=readable))
    return out


def test_the_figures_by_hand(item):
    long = scored_by(cg_bench.score_choice, lambda **info: item(key="cgbench/0", **info), ["B", "B", "A", "A"])
    clue = scored_by(
        cg_bench.score_choice, lambda **info: item(key="cgbench_clue/0", **info), ["B", "B", "B", "A", "B"]
    )
    # IoU 0.5, 0.25, 1, 0.
    spans = ["0 to 10", "0 to 20", "0 to 5", "20 to 30"]
    where = scored_by(cg_bench.score_clues, lambda **info: clue_item(item, [[0, 5]], **info), spans)
    figures = cg_bench.clue_figures(where, "strict")
    # Shares from .1, .2, .3, .4, .5 on: 3/4, 3/4, 2/4, 2/4, 2/4.
    assert figures == {"mIoU": pytest.approx(1.75 / 4), "rec@IoU": pytest.approx(0.6)}
    found = cg_bench.figures_with(long, {"cgbench_clue": clue, "cgbench_miou": where}, "strict")
    # The fifth question was not asked over the whole video. Right and found: 2/4, 2/4, 1/4, 1/4, 1/4.
    assert found == {"clue-acc": 0.75, "CRR": pytest.approx(0.5 / 0.75), "acc@IoU": pytest.approx(0.35)}
    assert cg_bench.figures_with(long, {}, "strict") == {}


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0, 1, 2, 3, 5, 10, 20])), min_size=1, max_size=8))
def test_acc_at_iou_never_exceeds_accuracy_and_recall(item, answers):
    long = scored_by(
        cg_bench.score_choice, lambda **info: item(key="cgbench/0", **info), ["AB"[right] for right, _ in answers]
    )
    where = scored_by(
        cg_bench.score_clues,
        lambda **info: clue_item(item, [[0, 10]], **info),
        [f"0 to {end}" if end else None for _, end in answers],
    )
    found = cg_bench.figures_with(long, {"cgbench_miou": where}, "strict")["acc@IoU"]
    # 0 to end against 0 to 10, counted threshold by threshold in whole tenths.
    iou_tenths = [100 // end if end > 10 else end for _, end in answers]
    hits = [
        right and tenths >= at for at in range(1, 6) for (right, _), tenths in zip(answers, iou_tenths, strict=True)
    ]
    assert found == pytest.approx(sum(hits) / len(hits))
    accuracy = sum(right for right, _ in answers) / len(answers)
    assert found <= min(accuracy, cg_bench.clue_figures(where, "strict")["rec@IoU"]) + 1e-12
