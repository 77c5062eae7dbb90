import math
import random
import re
import statistics
from fractions import Fraction
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_care.data.records import DataError, check_file, to_row, write_rows
from verl_care.data.selection import (
    KEPT,
    LOW_VARIANCE,
    NO_RUNS,
    OUTCOMES,
    OVER_BUDGET,
    TOO_EASY,
    TOO_HARD,
    KeepRules,
    Runs,
    allocate,
    compute_pass_rate,
    compute_variance,
    histogram,
    quantile,
    read_problem_types,
    read_runs,
    select,
    write_selection,
)
from verl_care.workers.rollout_log import RolloutLog


def qa(key, right, runs=8, source="demo"):
    acc = tuple([1.0] * right + [0.0] * (runs - right))
    return Runs(prompt_key=key, data_source=source, problem_type="multiple choice", acc=acc)


def spans(key, *ious, source="demo"):
    return Runs(prompt_key=key, data_source=source, problem_type="temporal grounding", acc=ious)


def both(key, answers, ious):
    acc = tuple((a + i) / 2 for a, i in zip(answers, ious, strict=True))
    return Runs(
        prompt_key=key, data_source="demo", problem_type="grounded QA", acc=acc, acc_answer=answers, acc_iou=ious
    )


def outcomes(samples, **rules):
    return {score.prompt_key: score.outcome for score in select(samples, KeepRules(**rules)).scores}


@pytest.mark.parametrize(
    ("values", "variance"),
    [
        ((1.0, 0, 0, 0, 0, 0, 0, 0), 7 / 64),  # 1/8 * 7/8
        ((1.0, 0.0), 0.25),
        ((0.2, 0.4, 0.6), 0.08 / 3),  # mean 0.4: (0.04 + 0 + 0.04) / 3
        ((0.3,), 0.0),
        ((0.7, 0.7, 0.7), 0.0),
    ],
)
def test_variance_by_hand(values, variance):
    assert compute_variance(values) == pytest.approx(variance, abs=1e-15)


@given(st.floats(0, 1), st.integers(1, 20))
def test_equal_runs_have_no_variance(value, count):
    assert compute_variance((value,) * count) == 0.0


def test_without_runs_there_is_neither_rate_nor_variance():
    assert math.isnan(compute_variance(())) and math.isnan(compute_pass_rate((), 0.5))


def test_quantile_by_hand():
    # four values: place 0.5 * 3 = 1.5, between the second and the third
    assert quantile([0.4, 0.1, 0.3, 0.2], 0.5) == pytest.approx(0.25)
    assert (quantile([0.4, 0.1], 0.0), quantile([0.4, 0.1], 1.0), quantile([], 0.5)) == (0.1, 0.4, 0.0)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30), st.integers(1, 9))
def test_quantile_is_that_of_the_standard_library(values, tenth):
    expected = statistics.quantiles(values, n=10, method="inclusive")[tenth - 1]
    assert quantile(values, tenth / 10) == pytest.approx(expected, abs=1e-12)


def test_a_planted_mix_of_questions_is_found():
    planted = {**{f"easy{n}": 8 for n in range(5)}, **{f"middle{n}": n for n in range(1, 8)}, "hard": 0}
    found = outcomes([qa(key, right) for key, right in planted.items()])
    assert found == {
        key: TOO_EASY if right == 8 else TOO_HARD if right == 0 else KEPT for key, right in planted.items()
    }


def test_pass_rates_at_the_bounds_are_out():
    samples = [qa(str(right), right) for right in range(9)]
    found = outcomes(samples, min_pass_rate=0.25, max_pass_rate=0.75)
    assert [key for key, outcome in found.items() if outcome == KEPT] == ["3", "4", "5"]
    assert found["2"] == TOO_HARD and found["6"] == TOO_EASY


def test_partial_accuracies_count_from_the_threshold_on():
    ocr = Runs(prompt_key="o", data_source="demo", problem_type="OCR", acc=(0.5, 0.4, 0.9, 1.0))
    score = select([ocr]).scores[0]
    assert (score.pass_rate, score.outcome) == (0.75, KEPT)
    assert outcomes([ocr], correct_threshold=0.95) == {"o": KEPT}
    assert outcomes([ocr], correct_threshold=0.4) == {"o": TOO_EASY}


def test_spans_are_kept_for_their_variance():
    # variances: 0.04, 0.0025, 0, 0
    samples = [spans("wide", 0.2, 0.6), spans("narrow", 0.5, 0.6), spans("good", 0.9, 0.9), spans("bad", 0.0, 0.0)]
    assert outcomes(samples) == {"wide": KEPT, "narrow": KEPT, "good": LOW_VARIANCE, "bad": LOW_VARIANCE}
    assert outcomes(samples, min_variance=0.01)["narrow"] == LOW_VARIANCE
    selection = select(samples, KeepRules(variance_quantile=0.75))
    # place 0.75 * 3 = 2.25 in 0, 0, 0.0025, 0.04
    assert selection.variance_threshold == pytest.approx(0.0025 + 0.25 * 0.0375)
    assert selection.kept == {"wide"}
    assert [score.pass_rate for score in selection.scores] == pytest.approx([0.4, 0.55, 0.9, 0.0])


def test_a_quantile_is_of_spans_alone():
    questions = [qa(str(n), 4) for n in range(50)]
    selection = select([*questions, spans("a", 0.0, 0.2), spans("b", 0.0, 0.4)], KeepRules(variance_quantile=0.5))
    # variances 0.01 and 0.04
    assert selection.variance_threshold == pytest.approx(0.025)
    assert selection.kept == {*map(str, range(50)), "b"}


@pytest.mark.parametrize(
    ("answers", "ious", "outcome"),
    [
        ((1.0, 0.0), (0.5, 0.5), KEPT),  # mixed options
        ((1.0, 1.0), (0.1, 0.9), KEPT),  # spans vary
        ((0.0, 0.0), (0.1, 0.9), KEPT),
        ((1.0, 1.0), (0.5, 0.5), TOO_EASY),
        ((0.0, 0.0), (0.5, 0.55), TOO_HARD),  # variance 0.000625 below 0.01
    ],
)
def test_grounded_qa_is_kept_for_either_part(answers, ious, outcome):
    assert outcomes([both("x", answers, ious)], min_variance=0.01) == {"x": outcome}


def test_grounded_qa_without_its_parts_is_judged_by_the_whole():
    whole = Runs(prompt_key="x", data_source="demo", problem_type="grounded QA", acc=(0.2, 0.8))
    assert outcomes([whole]) == {"x": KEPT}


def test_too_few_runs():
    assert outcomes([qa("x", 1, runs=1), qa("none", 0, runs=0), qa("y", 1, runs=2)]) == {
        "x": NO_RUNS,
        "none": NO_RUNS,
        "y": KEPT,
    }


SIZES = {("a", "q"): 50, ("b", "q"): 30, ("c", "s"): 5}


def test_budget_in_proportion():
    # 17 * 50/85 = 10, 17 * 30/85 = 6, 17 * 5/85 = 1
    assert allocate(SIZES, 17) == {("a", "q"): 10, ("b", "q"): 6, ("c", "s"): 1}
    # 10 * 50/85 = 5.88, 3.53, 0.59: 5 + 3 + 0, two more to .88 and .59
    assert allocate(SIZES, 10) == {("a", "q"): 6, ("b", "q"): 3, ("c", "s"): 1}
    assert allocate(SIZES, 100) == SIZES


def test_budget_in_equal_parts():
    # 5 are all of c; the other 16 go half and half
    assert allocate(SIZES, 21, "equal") == {("a", "q"): 8, ("b", "q"): 8, ("c", "s"): 5}
    assert allocate(SIZES, 2, "equal") == {("a", "q"): 1, ("b", "q"): 1, ("c", "s"): 0}


@given(
    st.dictionaries(st.tuples(st.sampled_from("abcd"), st.sampled_from("xyz")), st.integers(0, 40), max_size=8),
    st.integers(0, 200),
    st.sampled_from(["proportional", "equal"]),
)
def test_a_budget_is_used_up_and_no_stratum_overdrawn(sizes, budget, balance):
    shares = allocate(sizes, budget, balance)
    total = sum(sizes.values())
    assert sum(shares.values()) == min(budget, total)
    assert shares.keys() == sizes.keys() and all(0 <= shares[name] <= sizes[name] for name in sizes)
    if balance == "proportional" and budget < total:
        assert all(abs(shares[name] - Fraction(budget * sizes[name], total)) < 1 for name in sizes)
    open_ = [shares[name] for name in sizes if shares[name] < sizes[name]]
    if balance == "equal" and open_:
        assert max(shares.values()) - min(open_) <= 1


def mix():
    return [
        *(qa(f"q{n}", n % 9, source="one") for n in range(90)),
        *(qa(f"r{n}", 4, source="two") for n in range(20)),
        *(spans(f"s{n}", 0.1, 0.1 + n / 100, source="two") for n in range(30)),
    ]


def test_the_draw_depends_on_the_seed_and_not_on_the_order():
    shuffled = mix()
    random.Random(3).shuffle(shuffled)
    rules = KeepRules(keep=40, seed=5)
    first = select(mix(), rules)
    assert select(shuffled, rules).kept == first.kept
    assert select(mix(), KeepRules(keep=40, seed=6)).kept != first.kept
    assert len(first.kept) == 40
    # 70 + 20 + 29 = 119 pass: 40 * 70/119 = 23.5, 6.7, 9.7
    drawn = {name: sum(row) for name, row in histogram(s for s in first.scores if s.outcome == KEPT).items()}
    assert drawn == {("one", "multiple choice"): 23, ("two", "multiple choice"): 7, ("two", "temporal grounding"): 10}
    assert first.counts == {KEPT: 40, TOO_HARD: 10, TOO_EASY: 10, LOW_VARIANCE: 1, NO_RUNS: 0, OVER_BUDGET: 79}
    assert tuple(first.counts) == OUTCOMES


def test_histogram_by_hand():
    scores = select([qa("a", 0), qa("b", 1), qa("c", 8), qa("d", 7), qa("e", 0, runs=0)]).scores
    assert histogram(scores) == {("demo", "multiple choice"): [1, 1, 0, 0, 0, 0, 0, 2]}


@given(st.lists(st.tuples(st.lists(st.floats(0, 1), max_size=5), st.sampled_from(["OCR", "temporal grounding"]))))
def test_every_record_has_one_outcome(drawn):
    samples = [
        Runs(prompt_key=str(n), data_source="demo", problem_type=problem_type, acc=tuple(acc))
        for n, (acc, problem_type) in enumerate(drawn)
    ]
    selection = select(samples, KeepRules(keep=3, variance_quantile=0.3))
    assert [score.prompt_key for score in selection.scores] == [runs.prompt_key for runs in samples]
    assert sum(selection.counts.values()) == len(samples) and len(selection.kept) <= 3
    assert all(score.variance > 0 for score in selection.scores if score.outcome == KEPT)


def test_one_record_has_one_entry():
    with pytest.raises(ValueError, match="record x has two entries"):
        select([qa("x", 1), qa("x", 2)])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("min_runs", 0),
        ("correct_threshold", 0.0),
        ("min_pass_rate", 1.0),
        ("max_pass_rate", 0.0),
        ("min_variance", 0.3),
        ("variance_quantile", 1.0),
        ("keep", 0),
        ("balance", "random"),
    ],
)
def test_bad_rules_are_named(field, value):
    with pytest.raises(ValueError, match=f"^{field}: expected"):
        KeepRules(**{field: value})


def test_threshold_and_quantile_exclude_each_other():
    with pytest.raises(ValueError, match="variance_quantile: expected nothing beside min_variance"):
        KeepRules(min_variance=0.1, variance_quantile=0.5)


@pytest.mark.parametrize("value", [1.5, -0.1, math.nan])
def test_runs_outside_the_unit_interval_are_named(value):
    with pytest.raises(ValueError, match=r"record x: acc: expected numbers in \[0, 1\]"):
        spans("x", value)


def write_log(folder):
    log = RolloutLog(folder, max_bytes=10**9)
    for step, entries in {
        1: [("demo/0", 1.0, 0.0), ("demo/0", 0.0, 0.0), ("demo/1", 0.25, 0.0), ("demo/1", 0.75, 0.0)],
        2: [("demo/0", 0.0, 0.0), ("demo/0", 0.0, 1.0), ("demo/2", 1.0, 0.0), ("demo/2", None, 0.0)],
    }.items():
        keys, acc, errors = zip(*entries, strict=True)
        columns = {"uid": ["u"] * len(keys), "prompt_key": keys, "acc": acc, "reward_error": errors}
        log.write(step, 0, {**columns, "data_source": ["demo"] * len(keys)})


TYPES = {"demo/0": "multiple choice", "demo/1": "temporal grounding", "demo/2": "numerical"}


def test_runs_from_a_rollout_log(tmp_path):
    write_log(tmp_path)
    runs = {entry.prompt_key: entry for entry in read_runs(tmp_path, TYPES)}
    # the rollout whose reward raised and the one without accuracy are no outcomes
    assert {key: entry.acc for key, entry in runs.items()} == {
        "demo/0": (1.0, 0.0, 0.0),
        "demo/1": (0.25, 0.75),
        "demo/2": (1.0,),
    }
    assert {key: entry.problem_type for key, entry in runs.items()} == TYPES
    found = outcomes(runs.values())
    assert found == {"demo/0": KEPT, "demo/1": KEPT, "demo/2": NO_RUNS}
    assert [entry.acc for entry in read_runs(tmp_path, TYPES, last_step=1)] == [(1.0, 0.0), (0.25, 0.75)]
    assert [entry.acc for entry in read_runs(tmp_path, TYPES, first_step=2)] == [(0.0,), (1.0,)]


def test_a_log_of_other_data_is_named(tmp_path):
    write_log(tmp_path)
    with pytest.raises(ValueError, match="step 2: record demo/2 is not in the data"):
        read_runs(tmp_path, {key: TYPES[key] for key in ("demo/0", "demo/1")})
    with pytest.raises(FileNotFoundError, match="no rollout log"):
        read_runs(tmp_path / "other", TYPES)


def test_problem_types_by_record():
    rows = [{"data_source": "demo", "extra_info": {"index": 3, "problem_type": "OCR"}}]
    assert read_problem_types(rows) == {"demo/3": "OCR"}


def record(index, **extra):
    return to_row(
        data_source="demo",
        index=index,
        question="Which?",
        problem_type="multiple choice",
        ground_truth="A",
        options=["A. cup", "B. pen"],
        extra_info=extra,
    )


def test_subset_and_score_table(tmp_path):
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    write_rows([record(0), record(1)], files[0])
    write_rows([record(1), record(2, note="seen"), record(3)], files[1])
    selection = select([qa("demo/3", 2), qa("demo/0", 8), qa("demo/1", 4), qa("demo/2", 1)])
    subset, scores = write_selection(files, selection, tmp_path / "out")
    rows = pq.read_table(subset).to_pylist()
    assert [row["extra_info"]["index"] for row in rows] == [1, 2, 3]
    assert rows[1]["extra_info"]["note"] == "seen"
    assert check_file(str(subset)) == 3
    table = pq.read_table(scores).to_pylist()
    assert [(row["prompt_key"], row["runs"], row["pass_rate"], row["outcome"]) for row in table] == [
        ("demo/3", 8, 0.25, KEPT),
        ("demo/0", 8, 1.0, TOO_EASY),
        ("demo/1", 8, 0.5, KEPT),
        ("demo/2", 8, 0.125, KEPT),
    ]
    assert sorted(path.name for path in subset.parent.iterdir()) == ["scores.parquet", "subset.parquet"]


def test_an_empty_selection_and_a_missing_record_are_errors(tmp_path):
    write_rows([record(0)], tmp_path / "a.parquet")
    with pytest.raises(DataError, match="nothing passes the keep rules .*too easy 1"):
        write_selection([tmp_path / "a.parquet"], select([qa("demo/0", 8)]), tmp_path / "out")
    with pytest.raises(DataError, match="record demo/7 is in none of the data files"):
        write_selection([tmp_path / "a.parquet"], select([qa("demo/0", 4), qa("demo/7", 4)]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_documented_example_runs(tmp_path, monkeypatch, capsys):
    page = Path(__file__).parents[2] / "docs" / "selection.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    write_rows([record(index) for index in range(3)], "train.parquet")
    log = RolloutLog("outputs/run", max_bytes=10**9)
    columns = {"uid": ["u"] * 4, "prompt_key": ["demo/0", "demo/0", "demo/1", "demo/1"], "data_source": ["demo"] * 4}
    log.write(1, 0, {**columns, "acc": [1.0, 0.0, 1.0, 1.0]})
    exec(compile(block, str(page), "exec"), {})
    assert "'kept': 1" in capsys.readouterr().out
    assert pq.read_table("selected/subset.parquet").num_rows == 1
