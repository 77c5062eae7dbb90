"""Benchmarks without arithmetic of their own: groups, pairs that count together, readings of answers."""

import itertools

import pytest

from verl_care.evaluation.metrics import METRICS, metric_of, tempcompass
from verl_care.evaluation.metrics.base import Scored
from verl_care.evaluation.metrics.open_answers import holds_gold
from verl_care.evaluation.statistics import group_mean

WHEN = ("charades_sta", "activitynet_tvg", "cgbench_miou")
"""Benchmarks that ask for times alone."""


def scored_by(metric, items, answers):
    out = []
    for entry, answer in zip(items, answers, strict=True):
        values, readable = metric.score(entry, answer)
        out.append(Scored(item=entry, values=values, readable=readable))
    return out


@pytest.mark.parametrize("name", sorted(METRICS))
def test_the_words_of_an_option_are_right_leniently_alone(item, name):
    entry = item(key=f"{name}/0")
    if name in WHEN:
        return
    values, readable = metric_of(name).score(entry, "B. pen")
    assert (values["strict"]["score"], values["lenient"]["score"], readable) == (0.0, 1.0, True)
    values, readable = metric_of(name).score(entry, "dunno")
    assert (values["strict"]["score"], values["lenient"]["score"], readable) == (0.0, 0.0, False)


def test_video_mme_by_duration(item):
    classes = ["short", "short", "medium", "long"]
    items = [item(key=f"video_mme/{n}", duration_class=name) for n, name in enumerate(classes)]
    metric = metric_of("video_mme")
    scored = scored_by(metric, items, ["B", "A", "B", "B. pen"])
    assert metric.tables(scored, "strict")["duration_class"] == {"long": 0.0, "medium": 1.0, "short": 0.5}
    assert metric.tables(scored, "lenient")["duration_class"] == {"long": 1.0, "medium": 1.0, "short": 0.5}
    assert group_mean(metric.units(scored, "strict")) == 0.5


def test_mvbench_averages_tasks_and_not_items(item):
    items = [item(key=f"mvbench/{n}", task_type=task) for n, task in enumerate(["count", "count", "count", "order"])]
    metric = metric_of("mvbench")
    # 1/3 and 1: 2/3, where the mean over items is 1/2.
    assert group_mean(metric.units(scored_by(metric, items, ["B", "A", "A", "B"]), "strict")) == pytest.approx(2 / 3)


def test_a_question_of_pairs_counts_only_if_all_pairs_are_right(item):
    metric = metric_of("videomathqa")
    for answers in itertools.product("BA", repeat=4):
        items = [
            item(key=f"videomathqa/{n}", config="multi_binary", question_id=n // 2, video="v", options=("A. 1", "B. 2"))
            for n in range(4)
        ]
        units = metric.units(scored_by(metric, items, answers), "strict")
        expected = [all(answer == "B" for answer in answers[first : first + 2]) for first in (0, 2)]
        assert [unit.value for unit in units] == [float(right) for right in expected]
        assert group_mean(units) == sum(expected) / 2


def test_choices_of_videomathqa_count_one_by_one(item):
    items = [item(key=f"videomathqa/{n}", config="mcq", question_id=7) for n in range(2)]
    metric = metric_of("videomathqa")
    assert group_mean(metric.units(scored_by(metric, items, ["B", "A"]), "strict")) == 0.5


def test_an_item_of_several_types_counts_for_each(item):
    items = [item(key="lvbench/0", question_type=["event", "entity"]), item(key="lvbench/1", question_type=["event"])]
    metric = metric_of("lvbench")
    found = metric.tables(scored_by(metric, items, ["B", "A"]), "strict")["question_type"]
    assert found == {"entity": 1.0, "event": 0.5}


@pytest.mark.parametrize(
    ("answer", "gold", "option", "right"),
    [
        ("B", "B", "B. pen", True),
        ("b", "B", "B. pen", True),
        ("B. pen", "B", "B. pen", True),
        ("B) a pen, I think", "B", "B. pen", True),
        ("Because", "B", "B. pen", False),
        ("A. cup", "B", "B. pen", False),
        ("yes", "yes", "", True),
        ("Yes", "yes", "", True),
        ("yes, it does", "yes", "", False),
        ("", "B", "B. pen", False),
    ],
)
def test_the_rules_of_tempcompass(answer, gold, option, right):
    assert tempcompass.is_right(answer, gold, option) is right


def test_tempcompass_by_aspect_and_format(item):
    items = [
        item(key=f"tempcompass/{n}", aspect=aspect, format=form)
        for n, (aspect, form) in enumerate([("order", "multi-choice"), ("order", "yes_no"), ("speed", "yes_no")])
    ]
    metric = metric_of("tempcompass")
    scored = scored_by(metric, items, ["B", "A", "B. x"])
    tables = metric.tables(scored, "official")
    assert tables["aspect"] == {"order": 0.5, "speed": 1.0}
    assert tables["format"] == {"multi-choice": 1.0, "yes_no": 0.5}


@pytest.mark.parametrize(
    ("answer", "gold", "held"),
    [
        ("The mitral valve is shown.", "mitral valve", True),
        ("the mitral valves", "mitral valve", False),
        ("about 3.14159 m", "3.14", True),
        ("3.2", "3.14", False),
        ("1,200 units", "1200", True),
        ("x = -2", "2", False),
        ("a cat", "a", False),
        ("", "cat", False),
    ],
)
def test_open_answers_by_rule(answer, gold, held):
    assert holds_gold(answer, gold) is held


def test_open_questions_are_strict_by_equal_text(item):
    entry = item(key="video_mmmu/0", problem_type="free-form", ground_truth="Mitral valve", options=())
    for answer, strict, lenient in (("mitral valve.", 1, 1), ("the mitral valve", 0, 1), ("aorta", 0, 0), (None, 0, 0)):
        values, _ = metric_of("video_mmmu").score(entry, answer)
        assert (values["strict"]["score"], values["lenient"]["score"]) == (strict, lenient)


@pytest.mark.parametrize(
    ("answer", "strict", "lenient", "official"),
    [
        ("yes", 1, 1, 1),
        ("Yes", 0, 1, 1),
        ("Yes, it does.", 0, 1, 0),
        ("no", 0, 0, 0),
        ("Not yes", 0, 0, 0),
        (None, 0, 0, 0),
    ],
)
def test_yes_or_no(item, answer, strict, lenient, official):
    entry = item(key="tempcompass/0", problem_type="free-form", ground_truth="yes", options=(), format="yes_no")
    values, _ = tempcompass.score(entry, answer)
    assert [values[reading]["score"] for reading in ("strict", "lenient", "official")] == [strict, lenient, official]


def test_every_evaluation_set_that_is_prepared_has_its_metric():
    from verl_care.data.prepare.table import PREPARERS

    assert {name for name, preparer in PREPARERS.items() if preparer.kind == "evaluation"} <= set(METRICS)
    assert set(METRICS) <= set(PREPARERS)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_the_gold_answer_is_right_by_every_reading(item, name):
    entry, answer = item(key=f"{name}/0", question_type="route_planning"), "B"
    if name in WHEN:
        entry = item(key=f"{name}/0", problem_type="temporal grounding", ground_truth="[[2.5, 7.0]]", options=())
        answer = "2.5 to 7.0"
    elif name == "nextgqa":
        gold = '{"answer": "B", "spans": [[1.0, 2.0], [2.5, 7.0]]}'
        entry = item(key=f"{name}/0", problem_type="grounded QA", ground_truth=gold)
        answer = "B; 2.5 to 7.0"
    (scored,) = scored_by(metric_of(name), [entry], [answer])
    assert {reading: values["score"] for reading, values in scored.values.items()} == dict.fromkeys(scored.values, 1.0)
    (failed,) = scored_by(metric_of(name), [entry], [None])
    assert not failed.readable and set(failed.values) == set(scored.values)
    assert all(value == 0.0 for values in failed.values.values() for value in values.values())
