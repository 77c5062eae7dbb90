import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from verl_care.rewards.scorer import PROBLEM_TYPES, RESULT_KEYS, compute_score, normalise_result

GOLD = {
    "multiple choice": "B",
    "numerical": "3.5",
    "OCR": "NO EXIT HERE",
    "free-form": "the red ball moves",
    "regression": "4",
    "temporal grounding": "[[2, 6]]",
    "grounded QA": '{"answer": "B", "spans": [[2, 6]]}',
}
OPTIONS = ["A. cup", "B. pen"]
WITH_OPTIONS = ("multiple choice", "grounded QA")


def score(answer, problem_type, gold=None, **kwargs):
    response = f"<think>because</think><answer>{answer}</answer>"
    return compute_score("demo", response, gold or GOLD[problem_type], info(problem_type), **kwargs)


def info(problem_type):
    return {"index": 7, "problem_type": problem_type, "options": OPTIONS if problem_type in WITH_OPTIONS else None}


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
def test_right_answer_in_the_right_format(problem_type):
    result = score(GOLD[problem_type], problem_type)
    assert tuple(result) == RESULT_KEYS
    assert result["acc"] == pytest.approx(1.0, abs=1e-8)
    assert result["score"] == pytest.approx(2.0, abs=1e-8)
    assert (result["format"], result["unparsed"], result["pred"]) == (1.0, 0.0, GOLD[problem_type])


@pytest.mark.parametrize(
    ("answer", "problem_type", "gold", "strict", "lenient", "unparsed"),
    [
        ("B. pen", "multiple choice", "B", 0.0, 1.0, 0.0),
        ("(A)", "multiple choice", "B", 0.0, 0.0, 0.0),
        ("a cup or so", "multiple choice", "B", 0.0, 0.0, 1.0),
        ("pen", "multiple choice", "pen", 1.0, 1.0, 0.0),
        ("3", "numerical", "3.0", 0.0, 1.0, 0.0),
        ("two", "numerical", "3.0", 0.0, 0.0, 1.0),
        ("no exit here", "OCR", "NO EXIT HERE", 0.0, 1.0, 0.0),
        ("0", "regression", "0", 0.0, 1.0, 0.0),
        ("B", "multiple choice", "<answer>B</answer>", 1.0, 1.0, 0.0),
        ("\u7403", "free-form", "\u7403", 0.0, 1.0, 0.0),
    ],
)
def test_both_scorings(answer, problem_type, gold, strict, lenient, unparsed):
    for scoring, accuracy in (("strict", strict), ("lenient", lenient)):
        result = score(answer, problem_type, gold, scoring=scoring)
        assert (result["acc_strict"], result["acc_lenient"], result["unparsed"]) == (strict, lenient, unparsed)
        assert result["acc"] == accuracy
        assert result["score"] == accuracy + 1.0


HOSTILE = [
    "",
    "x" * 100_000,
    "<think>" + "<answer>" * 10_000,
    "<answer>" * 10_000 + "</answer>" * 10_000,
    "<think></think><answer>" + "B" * 100_000,
    "<answer>\ud800</answer>",
    "<answer>\0</answer>",
    "<answer></answer>",
    "<answer>" + " " * 100_000 + "</answer>",
    "<answer>" + "a " * 50_000 + "</answer>",
    "\ud800\udfff\0" * 1_000,
    None,
    3,
]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
@pytest.mark.parametrize("response", HOSTILE, ids=range(len(HOSTILE)))
def test_malformed_output_scores_nothing_and_is_counted(response, problem_type):
    result = compute_score("demo", response, GOLD[problem_type], info(problem_type))
    assert (result["acc_strict"], result["acc_lenient"], result["unparsed"]) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize("problem_type", ["numerical", "regression"])
@pytest.mark.parametrize("answer", ["1e999999", "-inf", "nan", "9" * 10_000, "9^{9^{9}}"])
def test_numbers_beyond_floats_are_no_numbers(answer, problem_type):
    result = score(answer, problem_type)
    assert (result["acc_strict"], result["acc_lenient"], result["unparsed"]) == (0.0, 0.0, 1.0)


answers = st.text(max_size=30) | st.sampled_from(["B", "3.5", "NO EXIT", "the red ball", "4", "B. pen", "\ud800"])
answers |= st.sampled_from(
    ["3 to 7", "B; 7 to 3", "[2, 2]", "from 00:02 to 00:06 or so", '{"answer": "B", "start": 2}']
)
answers |= st.text("0123456789:.-[]{}to ,;B", max_size=20)
surrogates = st.text(st.characters(categories=["Cs", "Cc", "L", "N", "P"]), max_size=30)
frames = st.sampled_from(["{}", "<answer>{}</answer>", "<think>x</think><answer>{}</answer>", "<answer>{}"])


@given(frames, answers | surrogates, st.sampled_from(PROBLEM_TYPES), st.sampled_from(["strict", "lenient"]))
@example("<answer>{}</answer>", "<answer>", "OCR", "strict")
def test_any_response_has_a_sound_score(frame, answer, problem_type, scoring):
    def scored():
        return compute_score("demo", frame.replace("{}", answer), GOLD[problem_type], info(problem_type), scoring)

    result = scored()
    assert tuple(result) == RESULT_KEYS
    assert 0.0 <= result["acc_strict"] <= result["acc_lenient"] <= 1.0
    assert result["format"] in (0.0, 1.0) and result["unparsed"] in (0.0, 1.0)
    assert result["score"] == pytest.approx(result["acc"] + result["format"], abs=1e-12)
    assert (result["acc_answer"] is None) == (problem_type == "temporal grounding")
    assert (result["acc_iou"] is None) == (problem_type not in ("temporal grounding", "grounded QA"))
    assert result["acc"] == result[f"acc_{scoring}"]
    assert not (result["unparsed"] and result["acc_lenient"])
    result["pred"].encode()
    assert result == scored()


IN_FORMAT = "<think>because</think><answer>{}</answer>"


@pytest.mark.parametrize(
    ("answer", "problem_type", "acc_answer", "acc_iou", "accuracy", "format_", "unparsed"),
    [
        # gold [2, 6]; [4, 6]: 2 / 4
        ("4 to 6", "temporal grounding", None, 0.5, 0.5, 1.0, 0.0),
        ('{"start_time": "4", "end_time": "6"}', "temporal grounding", None, 0.5, 0.5, 1.0, 0.0),
        ("00:04 to 00:06", "temporal grounding", None, 0.5, 0.5, 1.0, 0.0),
        ("6 to 2", "temporal grounding", None, 0.0, 0.0, 0.0, 0.0),
        ("4 to 4", "temporal grounding", None, 0.0, 0.0, 0.0, 0.0),
        ("7 to 9", "temporal grounding", None, 0.0, 0.0, 1.0, 0.0),
        ("later", "temporal grounding", None, 0.0, 0.0, 0.0, 1.0),
        # published code: 1.2.3 passes for a time in the format
        ('{"start_time": "1.2.3", "end_time": "6"}', "temporal grounding", None, 0.0, 0.0, 0.0, 1.0),
        # (1 + 0.5) / 2
        ('{"answer": "B", "start_time": 4, "end_time": 6}', "grounded QA", 1.0, 0.5, 0.75, 1.0, 0.0),
        ("B; 4 to 6", "grounded QA", 1.0, 0.5, 0.75, 1.0, 0.0),
        ("A; 4 to 6", "grounded QA", 0.0, 0.5, 0.25, 1.0, 0.0),
        ("B", "grounded QA", 1.0, 0.0, 0.5, 0.0, 0.0),
        ("B; 6 to 4", "grounded QA", 1.0, 0.0, 0.5, 0.0, 0.0),
        ("4 to 6", "grounded QA", 0.0, 0.5, 0.25, 0.0, 0.0),
        ("neither", "grounded QA", 0.0, 0.0, 0.0, 0.0, 1.0),
    ],
)
def test_answers_with_times(answer, problem_type, acc_answer, acc_iou, accuracy, format_, unparsed):
    result = score(answer, problem_type)
    assert (result["acc_answer"], result["acc_iou"], result["acc"]) == (acc_answer, acc_iou, accuracy)
    assert (result["format"], result["unparsed"], result["score"]) == (format_, unparsed, accuracy + format_)


@pytest.mark.parametrize(
    ("answer", "problem_type", "strict", "lenient"),
    [
        ("It runs from 4 to 6 seconds.", "temporal grounding", 0.0, 0.5),
        ("B. pen; 4 to 6", "grounded QA", 0.0, 0.75),
        ("The answer is B, seen from 4 to 6 s.", "grounded QA", 0.0, 0.75),
    ],
)
def test_times_among_words_count_in_the_lenient_scoring_alone(answer, problem_type, strict, lenient):
    result = score(answer, problem_type)
    assert (result["acc_strict"], result["acc_lenient"]) == (strict, lenient)
    loose = score(answer, problem_type, scoring="lenient")
    assert loose["acc"] == lenient and loose["unparsed"] == 0.0


PUBLISHED = {"temporal_grounding": {"iou": 0.5, "format": 0.5}}


@pytest.mark.parametrize(
    ("answer", "expected"),
    # 0.5 * IoU + 0.5 * format (arXiv 2506.01908; appletea233/Temporal-R1, tvg.py)
    [("2 to 6", 1.0), ("4 to 6", 0.75), ("8 to 9", 0.5), ("6 to 2", 0.0)],
)
def test_the_published_sum_for_grounding(answer, expected):
    assert score(answer, "temporal grounding", weights=PUBLISHED)["score"] == expected


def test_each_kind_of_task_has_weights_of_its_own():
    weights = {"grounded_qa": {"answer": 0.6, "iou": 0.2, "format": 0.1}, "qa": {"answer": 2, "format": 0}}
    result = score("B; 4 to 6", "grounded QA", weights=weights)
    # 0.6 * 1 + 0.2 * 0.5 + 0.1; (0.6 + 0.1) / 0.8
    assert result["score"] == pytest.approx(0.8)
    assert result["acc"] == pytest.approx(0.875)
    assert score("B", "multiple choice", weights=weights)["score"] == 2.0
    assert score("2 to 6", "temporal grounding", weights=weights)["score"] == 2.0


def test_no_weight_of_the_format_may_be_negative_and_no_name_misspelt():
    for weights, message in [
        ({"qa": {"format": -1}}, r"weights.qa.format: expected a finite number >= 0; got -1"),
        ({"qa": {"iou": 1}}, "weights.qa: expected answer, format; got 'iou'"),
        ({"mcq": {}}, "weights: expected qa, temporal_grounding, grounded_qa; got 'mcq'"),
        ({"grounded_qa": {"answer": 0, "iou": 0}}, "weights.grounded_qa: the answer weighs nothing"),
        ({"qa": {"answer": math.nan}}, "weights.qa.answer: expected a finite number"),
    ]:
        with pytest.raises(ValueError, match=message):
            score("B", "multiple choice", weights=weights)


def grounding(answer, gold, span_reward="iou", gold_spans="max", **extra):
    extra_info = {"index": 7, "problem_type": "temporal grounding", **extra}
    return compute_score(
        "demo",
        f"<think>because</think><answer>{answer}</answer>",
        gold,
        extra_info,
        span_reward=span_reward,
        gold_spans=gold_spans,
    )["acc"]


def test_units_of_gold_and_answer():
    # gold [0.2, 0.6] of 10 s = [2, 6] s
    assert grounding("4 to 6", "[0.2, 0.6]", span_unit="normalised", duration=10) == pytest.approx(0.5)
    assert grounding("0.4 to 0.6", "[2, 6]", answer_unit="normalised", duration=10.0) == pytest.approx(0.5)
    both = {"span_unit": "normalised", "answer_unit": "normalised"}
    assert grounding("0.4 to 0.6", "[0.2, 0.6]", **both) == pytest.approx(0.5)
    assert grounding("4 to 6", "[0.2, 0.6]", **both) == 0.0


def test_several_gold_spans():
    gold = "[[0, 2], [4, 8]]"
    assert grounding("4 to 6", gold) == pytest.approx(0.5)
    # 2 / (2 + 4 + 2 - 2)
    assert grounding("4 to 6", gold, gold_spans="union") == pytest.approx(2 / 6)
    assert grounding("0 to 2; 4 to 8", gold, gold_spans="union") == 1.0
    # both guesses against the better span alone: 4 / 6
    assert grounding("0 to 2; 4 to 8", gold) == pytest.approx(4 / 6)


def test_boundary_aware_variant():
    # IoU 0.5, starts 2 apart, ends equal, T = 10: 0.5 * 0.8 * 1
    assert grounding("4 to 6", "[2, 6]", span_reward="boundary", duration=10) == pytest.approx(0.4)
    normalised = {"span_unit": "normalised", "duration": 10, "span_reward": "boundary"}
    assert grounding("4 to 6", "[0.2, 0.6]", **normalised) == pytest.approx(0.4)
    assert grounding("0.4 to 0.6", "[0.2, 0.6]", answer_unit="normalised", **normalised) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("gold", "extra", "named"),
    [
        ("[[6, 2]]", {}, r"demo/7: span \[6, 2\] is reversed"),
        ("[[2, 2]]", {}, r"demo/7: span \[2, 2\] is empty"),
        ("soon", {}, "demo/7: 'soon' holds no span"),
        ("[[2, 60]]", {"duration": 30}, r"demo/7: span \[2, 60\] lies behind the clip's 30 s"),
        (
            "[2, 6]",
            {"span_unit": "normalised", "duration": 30},
            r"demo/7: '\[2, 6\]' holds no span of times in \[0, 1\]",
        ),
        ("[2, 6]", {"span_unit": "frames"}, "demo/7: extra_info.span_unit: expected seconds or normalised"),
        ("[0.2, 0.6]", {"span_unit": "normalised"}, "demo/7: extra_info.duration: gold spans are normalised"),
        ("[2, 6]", {"duration": 0}, "demo/7: extra_info.duration: expected the clip's seconds"),
        ("[2, 6]", {"span_reward": "boundary"}, "demo/7: span_reward=boundary needs the clip's duration"),
        ("[2, 6]", {"span_reward": "giou"}, "span_reward: expected iou or boundary; got 'giou'"),
        ("[2, 6]", {"gold_spans": "mean"}, "gold_spans: expected max or union; got 'mean'"),
    ],
)
def test_a_faulty_record_with_times_is_named(gold, extra, named):
    with pytest.raises(ValueError, match=named):
        grounding("4 to 6", gold, **extra)


def test_grounded_qa_wants_an_option_and_spans():
    for gold, named in [("B", "demo/7: 'B' holds no span"), ("[2, 6]", r"demo/7: '\[2, 6\]' holds no option")]:
        with pytest.raises(ValueError, match=named):
            score("B; 2 to 6", "grounded QA", gold)


def test_options_may_be_an_array():
    extra_info = {"index": 0, "problem_type": "multiple choice", "options": np.array(OPTIONS, dtype=object)}
    assert compute_score("demo", "<answer>pen</answer>", "B", extra_info)["acc_lenient"] == 1.0


@pytest.mark.parametrize(
    ("ground_truth", "extra_info", "named"),
    [
        ("B", {"index": 7, "problem_type": "riddle"}, "demo/7: extra_info.problem_type is 'riddle'"),
        ("B", {"index": 7, "problem_type": ["OCR"]}, "demo/7: extra_info.problem_type is"),
        ("B", None, "extra_info.problem_type is None"),
        (None, info("OCR"), "demo/7: reward_model.ground_truth is None"),
        (" ", info("OCR"), "demo/7: reward_model.ground_truth"),
        ("<answer></answer>", info("OCR"), "demo/7: reward_model.ground_truth"),
    ],
)
def test_a_faulty_record_is_named(ground_truth, extra_info, named):
    with pytest.raises(ValueError, match=named):
        compute_score("demo", "<answer>B</answer>", ground_truth, extra_info)


def test_unknown_scoring():
    with pytest.raises(ValueError, match="strict or lenient; got 'fuzzy'"):
        score("B", "multiple choice", scoring="fuzzy")


@pytest.mark.parametrize("number", [0.25, 1, True, np.float32(0.25), np.array(1.0)])
def test_a_number_is_accuracy_and_score(number):
    result = normalise_result(number)
    assert tuple(result) == RESULT_KEYS
    assert result["acc"] == result["score"] == result["acc_strict"] == result["acc_lenient"] == float(number)
    assert (result["format"], result["unparsed"], result["pred"]) == (0.0, 0.0, "")


def test_a_dict_keeps_its_own_values_and_loses_other_keys():
    result = normalise_result({"acc": 0.5, "score": -2.0, "reward": 9, "style": 0.1, "format": 1, "pred": 42})
    assert tuple(result) == RESULT_KEYS
    assert (result["acc"], result["score"], result["format"], result["pred"]) == (0.5, -2.0, 1.0, "42")


def test_our_own_result_passes_through():
    result = score("B", "multiple choice")
    assert normalise_result(result) == result


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"score": 1.0}, r"has no acc; got the keys \['score'\]"),
        ({}, "has no acc"),
        ({"acc": "1"}, "acc: expected a finite number; got '1'"),
        ({"acc": math.nan}, "acc: expected a finite number"),
        ({"acc": 1, "score": math.inf}, "score: expected a finite number"),
        ({"acc": 2}, r"acc: expected a number in \[0, 1\]"),
        (-1.0, r"acc: expected a number in \[0, 1\]"),
        (None, "expected a number or a dict with acc"),
        ("1", "expected a number or a dict with acc"),
        ([1.0], "acc: expected a finite number"),
    ],
)
def test_a_result_that_cannot_be_used(result, message):
    with pytest.raises(ValueError, match=message):
        normalise_result(result)


def test_import_is_light():
    code = (
        "import sys, verl_care.rewards.scorer\n"
        "heavy = {'torch', 'verl', 'numpy', 'nltk', 'jiwer', 'sympy', 'math_verify', 'rouge_score', 'rapidfuzz'}\n"
        "sys.exit(','.join(heavy & set(sys.modules)) or None)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
