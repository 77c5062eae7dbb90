"""Parsers and scorers against responses made to break them: no exception, no hang, the same result twice."""

import hashlib
import math
import subprocess
import sys

import pytest

from verl_care.evaluation.items import Item
from verl_care.evaluation.metrics.table import GENERIC, METRICS
from verl_care.rewards.format import format_reward
from verl_care.rewards.parsing import MAX_PRED_CHARS, read_answer
from verl_care.rewards.scorer import PROBLEM_TYPES, RESULT_KEYS, SCORINGS, compute_score
from verl_care.testing.hostile import CORPUS, GOLD, hostile_responses

INFO = {"index": 0, "options": ["A. cup", "B. pen"], "duration": 10.0}

# Repeated to a million characters, in an answer and in the open.
SHAPES = [
    "<answer>",
    "</answer>",
    "<think>",
    "</think>",
    "</think> ",
    "<think></think>",
    " ",
    "\n",
    "A",
    "A. ",
    "(A) ",
    "1",
    "1,",
    "1.",
    "1 ",
    "3 to 5 ",
    "1:",
    "[",
    "[1, ",
    "{",
    '{"a":',
    "```",
    "`",
    "\\frac{",
    "^{",
    "9^",
    "y",
    "a b ",
    "\0",
    "\u202e",
    "\ud800",
    "is the answer ",
]


def score(text, problem_type, scoring="strict"):
    info = {**INFO, "problem_type": problem_type}
    return compute_score("fuzz", text, GOLD[problem_type], info, scoring=scoring)


@pytest.fixture(scope="module", autouse=True)
def imports():
    """rouge-score, math-verify and jiwer are imported at first use, which takes longer than any response may."""
    for problem_type in PROBLEM_TYPES:
        for answer in ("the cup", "\\frac{1}{2}"):
            score(f"<answer>{answer}</answer>", problem_type)


def check(result):
    assert tuple(result) == RESULT_KEYS
    for name in ("acc", "acc_strict", "acc_lenient"):
        assert 0.0 <= result[name] <= 1.0
    assert result["acc_lenient"] >= result["acc_strict"]
    assert result["format"] in (0.0, 1.0) and result["unparsed"] in (0.0, 1.0)
    assert math.isfinite(result["score"]) and 0.0 <= result["score"] <= 2.0
    assert len(result["pred"]) <= MAX_PRED_CHARS
    result["pred"].encode("utf-8")


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
@pytest.mark.parametrize("scoring", SCORINGS)
def test_the_corpus_under_every_scorer(problem_type, scoring, cpu_limit):
    for text in CORPUS:
        with cpu_limit(text):
            result = score(text, problem_type, scoring)
        check(result)
        assert result == score(text, problem_type, scoring)


@pytest.mark.parametrize(
    "count",
    [pytest.param(20_000, id="quick"), pytest.param(1_000_000, id="million", marks=[pytest.mark.slow])],
)
@pytest.mark.timeout(3600)
def test_generated_responses(count, cpu_limit):
    seen = set()
    for number, text in enumerate(hostile_responses(count)):
        problem_type = PROBLEM_TYPES[number % len(PROBLEM_TYPES)]
        with cpu_limit(text):
            result = score(text, problem_type, SCORINGS[number % 2])
        check(result)
        # Formats and answers agree with what the parts read on their own.
        if problem_type not in ("temporal grounding", "grounded QA"):
            assert result["format"] == format_reward(text)
        if read_answer(text) is None:
            assert result["unparsed"] == 1.0 and result["acc"] == 0.0
        if number % 10 == 0:
            assert result == score(text, problem_type, SCORINGS[number % 2])
        seen.add((problem_type, result["acc"] > 0, result["unparsed"]))
    # The texts are not all alike: each scorer met right, wrong and unreadable answers.
    for problem_type in PROBLEM_TYPES:
        assert {(problem_type, True, 0.0), (problem_type, False, 0.0), (problem_type, False, 1.0)} <= seen


@pytest.mark.parametrize("frame", ["{}", "<answer>{}</answer>", "<think>{}</think><answer>B</answer>", "<answer>{}"])
def test_a_million_characters_of_anything(frame, cpu_limit):
    for shape in SHAPES:
        text = frame.format(shape * (1_000_000 // len(shape)))
        for problem_type in PROBLEM_TYPES:
            with cpu_limit((problem_type, text)):
                result = score(text, problem_type, "lenient")
            check(result)


def test_the_longest_answer_that_is_read(cpu_limit):
    """16,384 characters: long enough for a quadratic parser to be seen."""
    for shape in SHAPES:
        text = f"<answer>{shape * (16_384 // len(shape))}</answer>"
        for problem_type in PROBLEM_TYPES:
            with cpu_limit((problem_type, text)):
                check(score(text, problem_type, "lenient"))


def digest(count=2_000):
    total = hashlib.blake2b(digest_size=16)
    for number, text in enumerate(hostile_responses(count)):
        total.update(text.encode("utf-8", "surrogatepass"))
        total.update(repr(score(text, PROBLEM_TYPES[number % len(PROBLEM_TYPES)])).encode("utf-8", "replace"))
    return total.hexdigest()


def test_texts_and_scores_are_the_same_in_another_process():
    code = f"import runpy; print(runpy.run_path({__file__!r})['digest']())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={"PYTHONHASHSEED": "7"}
    )
    assert done.stdout.strip() == digest(), done.stderr[-2000:]


# What a benchmark's own metric reads besides the answer.
BENCHMARK_INFO = {
    **INFO,
    "question_type": "object_counting",
    "format": "yes_no",
    "aspect": "order",
    "task_type": "action_count",
    "type": "CW",
    "track": "Perception",
    "subject": "Art",
    "query": "opens the door",
    "config": "mcq",
    "question_id": "1",
}


@pytest.mark.parametrize("benchmark", [*METRICS, "another"])
def test_generated_responses_under_the_benchmarks_metrics(benchmark, cpu_limit):
    metric = METRICS.get(benchmark, GENERIC)
    names = dict.fromkeys(("charades_sta", "activitynet_tvg", "cgbench_miou"), "temporal grounding")
    names["nextgqa"] = "grounded QA"
    types = [names[benchmark]] if benchmark in names else ["multiple choice", "regression", "free-form"]
    for problem_type in types:
        item = Item(
            key=f"{benchmark}/0",
            benchmark=benchmark,
            problem_type=problem_type,
            ground_truth=GOLD[problem_type],
            options=("A. cup", "B. pen") if problem_type in ("multiple choice", "grounded QA") else (),
            video="clip",
            info={**BENCHMARK_INFO, "problem_type": problem_type},
            messages=[],
        )
        for text in hostile_responses(600, seed=1):
            for answer in (read_answer(text), text):
                with cpu_limit((benchmark, problem_type, answer)):
                    values, readable = metric.score(item, answer)
                assert isinstance(readable, bool)
                assert {"strict", "lenient"} <= set(values)
                for parts in values.values():
                    assert all(0.0 <= part <= 1.0 for part in parts.values()), (answer, values)
