from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from verl_care.evaluation.metrics import metric_of, vsi_bench
from verl_care.evaluation.metrics.base import Scored
from verl_care.evaluation.statistics import group_mean

TASKS = (
    "object_rel_direction_easy", "object_rel_direction_medium", "object_rel_direction_hard", "object_rel_distance",
    "route_planning", "obj_appearance_order", "object_abs_distance", "object_counting", "object_size_estimation",
    "room_size_estimation",
)  # fmt: skip


@pytest.mark.parametrize(
    ("pred", "gold", "official", "video_r1"),
    [
        (10, 10, 1.0, 1.0),
        # An error of 0.5 meets 1 - 0.50, and nothing stricter; below it in Video-R1's form lies none.
        (1, 2, 0.1, 0.0),
        (3, 2, 0.1, 0.0),
        # An error of 0.25 meets .50, .55, .60, .65, .70 and .75.
        (6, 8, 0.6, 0.5),
        (4.9, 10, 0.0, 0.0),
        (0, 5, 0.0, 0.0),
        (-5, 5, 0.0, 0.0),
        (3, 0, 0.0, 0.0),
        (0, 0, 0.0, 1.0),
    ],
)
def test_mean_relative_accuracy_at_its_boundaries(pred, gold, official, video_r1):
    assert vsi_bench.mean_relative_accuracy(pred, gold) == pytest.approx(official)
    assert vsi_bench.mean_relative_accuracy_video_r1(pred, gold) == pytest.approx(video_r1)


numbers = st.integers(1, 10_000)


@given(numbers, numbers)
def test_mean_relative_accuracy_against_fractions(pred, gold):
    error = Fraction(abs(pred - gold), gold)
    allowed = [1 - Fraction(50 + 5 * step, 100) for step in range(10)]
    # Nearer to a threshold than that, rounding decides.
    assume(all(abs(error - bound) > Fraction(1, 10**6) for bound in allowed))
    expected = sum(error <= bound for bound in allowed) / 10
    assert vsi_bench.mean_relative_accuracy(pred, gold) == pytest.approx(expected)
    assert vsi_bench.mean_relative_accuracy_video_r1(pred, gold) == pytest.approx(expected)


@given(numbers, numbers, numbers)
def test_a_nearer_number_never_scores_less(gold, first, second):
    near, far = sorted((first, second), key=lambda pred: abs(pred - gold))
    assert vsi_bench.mean_relative_accuracy(near, gold) >= vsi_bench.mean_relative_accuracy(far, gold)


@pytest.mark.parametrize(
    ("answer", "strict", "lenient", "official"),
    [
        ("B", 1, 1, 1),
        ("b", 0, 1, 1),
        ("B.", 0, 1, 1),
        ("B. pen", 0, 1, 1),
        ("The answer is B", 0, 1, 0),
        ("A", 0, 0, 0),
        (None, 0, 0, 0),
    ],
)
def test_choices_by_reading(item, answer, strict, lenient, official):
    values, _ = vsi_bench.score(item(question_type="route_planning"), answer)
    assert [values[reading]["score"] for reading in ("strict", "lenient", "official")] == [strict, lenient, official]


@pytest.mark.parametrize(
    ("answer", "strict", "lenient", "official"),
    [("4", 1, 1, 1), ("4 chairs", 0, 1, 1), ("about 4", 0, 1, 0), ("4.", 1, 1, 1), ("4 or 5", 0, 0, 1), ("", 0, 0, 0)],
)
def test_numbers_by_reading(item, answer, strict, lenient, official):
    counting = item(problem_type="regression", ground_truth="4", options=(), question_type="object_counting")
    values, _ = vsi_bench.score(counting, answer)
    assert [values[reading]["score"] for reading in ("strict", "lenient", "official")] == [strict, lenient, official]


@given(st.lists(st.tuples(st.sampled_from(TASKS), st.booleans()), min_size=1, max_size=60))
def test_the_headline_is_the_mean_over_eight_tasks_with_one_for_all_directions(answers):
    from verl_care.evaluation.items import Item

    metric = metric_of("vsi_bench")
    scored, by_type = [], {}
    for number, (task, right) in enumerate(answers):
        entry = Item(
            key=f"vsi_bench/{number}", benchmark="vsi_bench", problem_type="multiple choice", ground_truth="A",
            options=("A. x", "B. y"), video=f"v{number % 3}", info={"question_type": task}, messages=[],
        )  # fmt: skip
        values, readable = metric.score(entry, "A" if right else "B")
        scored.append(Scored(item=entry, values=values, readable=readable))
        by_type.setdefault(task, []).append(float(right))
    means = {task: sum(values) / len(values) for task, values in by_type.items()}
    directions = [mean for task, mean in means.items() if task.startswith("object_rel_direction")]
    others = [mean for task, mean in means.items() if not task.startswith("object_rel_direction")]
    tasks = others + ([sum(directions) / len(directions)] if directions else [])
    assert group_mean(metric.units(scored, "strict")) == pytest.approx(sum(tasks) / len(tasks))
