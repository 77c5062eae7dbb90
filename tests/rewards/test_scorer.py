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
}
OPTIONS = ["A. cup", "B. pen"]


def score(answer, problem_type, gold=None, **kwargs):
    response = f"<think>because</think><answer>{answer}</answer>"
    return compute_score("demo", response, gold or GOLD[problem_type], info(problem_type), **kwargs)


def info(problem_type):
    return {"index": 7, "problem_type": problem_type, "options": OPTIONS if problem_type == "multiple choice" else None}


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
    assert result["score"] == result["acc"] + result["format"]
    assert result["acc"] == result[f"acc_{scoring}"]
    assert not (result["unparsed"] and result["acc_lenient"])
    result["pred"].encode()
    assert result == scored()


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
