"""From answers to figures and comparisons, without a model."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_care.evaluation.items import Benchmark, Item
from verl_care.evaluation.page import baseline_rows, summary_rows
from verl_care.evaluation.scores import Answered, compare, prompt_digest, score_benchmark, summarise, to_rows


def item_of(number: int, name="video_mme", text="Which?", **info) -> Item:
    return Item(
        key=f"{name}/{number}",
        benchmark=name,
        problem_type="multiple choice",
        ground_truth="A",
        options=("A. cup", "B. pen"),
        video=f"clip{number // 2}",
        info={"index": number, "problem_type": "multiple choice", **info},
        messages=[{"role": "user", "content": [{"type": "video", "video": f"/here/{number}.mp4", "nframes": 8},
                                               {"type": "text", "text": text}]}],
    )  # fmt: skip


def bench_of(items) -> Benchmark:
    return Benchmark(name=items[0].benchmark, path="test.parquet", items=tuple(items))


def answer(item, text, seed=0, tokens=10, **more) -> Answered:
    return Answered(item=item, seed=seed, text=text, num_tokens=tokens, truncated=False, **more)


def scored(texts, seeds=(0,), tokens=10, **changes):
    items = [item_of(n, **changes) for n in range(len(texts))]
    answers = [answer(item, text, seed, tokens) for seed in seeds for item, text in zip(items, texts, strict=True)]
    return score_benchmark(bench_of(items), answers)


RIGHT, WRONG = "<answer>A</answer>", "<answer>B</answer>"


def rows_of(scores):
    return [asdict(row) for row in to_rows(scores)]


def test_shares_and_tokens_are_those_of_the_answers():
    items = [item_of(n) for n in range(5)]
    answers = [
        answer(items[0], RIGHT, tokens=10),
        answer(items[1], "A", tokens=30),  # without tags the whole is the answer
        answer(items[2], "<answer>A. cup</answer>", tokens=50),
        replace(answer(items[3], "it is, well", tokens=100), truncated=True),
        Answered(item=items[4], text=None, error="VideoError: gone"),
    ]
    summary = summarise(score_benchmark(bench_of(items), answers), resamples=50)
    assert summary["headline"]["strict"]["mean"] == pytest.approx(2 / 5)
    assert summary["headline"]["lenient"]["mean"] == pytest.approx(3 / 5)
    assert summary["tokens"] == {"mean": 47.5, "right": 20.0, "wrong": 75.0}
    assert summary["shares"] == {
        "truncated": pytest.approx(1 / 4), "tagged": pytest.approx(2 / 5), "unparsed": pytest.approx(2 / 5)
    }  # fmt: skip
    assert (summary["items"], summary["failed"], summary["videos"]) == (5, 1, 3)


def test_an_item_without_an_answer_does_not_leave_the_denominator():
    items = [item_of(0), item_of(1)]
    with pytest.raises(ValueError, match="video_mme/1 has no answer under seed 0"):
        score_benchmark(bench_of(items), [answer(items[0], RIGHT)])
    with pytest.raises(ValueError, match="video_mme/0 has two answers"):
        score_benchmark(bench_of(items[:1]), [answer(items[0], RIGHT), answer(items[0], WRONG)])


def test_the_spread_is_over_seeds_and_the_interval_over_clips():
    items = [item_of(n) for n in range(4)]
    answers = [answer(item, RIGHT, seed=0) for item in items]
    answers += [answer(item, RIGHT if n < 2 else WRONG, seed=1) for n, item in enumerate(items)]
    strict = summarise(score_benchmark(bench_of(items), answers), resamples=200)["headline"]["strict"]
    assert strict["mean"] == 0.75 and strict["std"] == pytest.approx(math.sqrt(0.125))
    # By clip: 1 and 0.5.
    assert (strict["low"], strict["high"]) == (0.5, 1.0)


def test_a_run_against_itself_is_not_distinguishable():
    scores = scored([RIGHT, WRONG, RIGHT, RIGHT])
    found = compare(scores, rows_of(scores), same_budget=True, resamples=100)
    assert found["difference"]["strict"] == {"value": 0.0, "low": 0.0, "high": 0.0, "verdict": "not distinguishable"}
    assert found["mcnemar"] == {"gained": 0, "lost": 0, "p": 1.0}
    assert found["token_reduction"]["value"] == 0.0
    assert found["token_reduction"]["verdict"] == "not distinguishable"


def test_a_clear_gain_with_fewer_tokens_is_said():
    better, base = scored([RIGHT] * 40, tokens=5), scored([RIGHT] * 10 + [WRONG] * 30, tokens=20)
    found = compare(better, rows_of(base), same_budget=True, resamples=300)
    assert found["difference"]["strict"]["value"] == 0.75 and found["difference"]["strict"]["verdict"] == "better"
    assert found["mcnemar"]["gained"] == 30 and found["mcnemar"]["p"] == pytest.approx(2 / 2**30)
    assert found["token_reduction"]["value"] == 0.75 and found["token_reduction"]["verdict"] == "fewer"
    back = compare(base, rows_of(better), same_budget=True, resamples=300)
    assert back["difference"]["strict"]["verdict"] == "worse" and back["token_reduction"]["verdict"] == "more"


def test_items_of_one_run_alone_are_left_out_and_counted():
    ours, base = scored([RIGHT, WRONG, RIGHT]), scored([WRONG, WRONG])
    found = compare(ours, rows_of(base), same_budget=True, resamples=50)
    assert (found["items"], found["left_out"]) == (2, 1) and found["difference"]["strict"]["value"] == 0.5
    with pytest.raises(ValueError, match="none of these items"):
        compare(scored([RIGHT], name="mmvu"), rows_of(base), same_budget=True)


def test_tokens_need_one_prompt_and_one_budget():
    base = rows_of(scored([RIGHT, WRONG]))
    other = compare(scored([RIGHT, WRONG], text="Think!"), base, same_budget=True, resamples=20)
    assert other["token_reduction"] == {"reason": "not compared: the runs have different prompts"}
    other = compare(scored([RIGHT, WRONG]), base, same_budget=False, resamples=20)
    assert other["token_reduction"] == {"reason": "not compared: the runs have different budgets"}
    assert other["difference"]["strict"]["value"] == 0.0


def test_a_prompt_is_its_words_and_its_frames_wherever_the_clip_lies():
    first = item_of(0)
    video, words = first.messages[0]["content"]

    def with_video(**changes) -> Item:
        return replace(first, messages=[{"role": "user", "content": [{**video, **changes}, words]}])

    moved, denser = with_video(video="/there/0.mp4"), with_video(nframes=16)
    assert prompt_digest(first) == prompt_digest(moved) != prompt_digest(denser)


def test_seeds_that_disagree_have_no_mcnemar():
    items = [item_of(0), item_of(1)]
    answers = [
        answer(items[0], RIGHT, 0),
        answer(items[1], RIGHT, 0),
        answer(items[0], WRONG, 1),
        answer(items[1], RIGHT, 1),
    ]
    scores = score_benchmark(bench_of(items), answers)
    assert compare(scores, rows_of(scores), same_budget=True, resamples=20)["mcnemar"] is None


@given(st.lists(st.sampled_from([RIGHT, WRONG, "<answer>A. cup</answer>", "dunno", None]), min_size=1, max_size=12))
def test_strict_never_exceeds_lenient_and_failures_are_counted(texts):
    items = [item_of(n) for n in range(len(texts))]
    answers = [
        Answered(item=item, text=text, error=None if text else "gone") for item, text in zip(items, texts, strict=True)
    ]
    summary = summarise(score_benchmark(bench_of(items), answers), resamples=10)
    strict, lenient = (summary["headline"][reading]["mean"] for reading in ("strict", "lenient"))
    assert 0 <= strict <= lenient <= 1 and strict == pytest.approx(texts.count(RIGHT) / len(texts))
    assert summary["failed"] == texts.count(None) and summary["items"] == len(texts)


def test_pairs_count_once_in_the_comparison_too():
    def pairs(texts):
        items = [item_of(n, name="videomathqa", config="multi_binary", question_id=n // 2) for n in range(len(texts))]
        return score_benchmark(bench_of(items), [answer(i, t) for i, t in zip(items, texts, strict=True)])

    ours, base = pairs([RIGHT, RIGHT, RIGHT, WRONG]), pairs([RIGHT, WRONG, RIGHT, WRONG])
    found = compare(ours, rows_of(base), same_budget=True, resamples=20)
    assert found["difference"]["strict"]["value"] == 0.5
    assert found["mcnemar"] == {"gained": 1, "lost": 0, "p": 1.0}
    assert summarise(ours, resamples=20)["counted"] == 2


def test_figures_of_two_benchmarks_are_means_over_the_seeds():
    def run(name, answers_by_seed):
        items = [item_of(n, name=name, id=f"q{n}") for n in range(2)]
        answers = [
            answer(item, text, seed)
            for seed, texts in enumerate(answers_by_seed)
            for item, text in zip(items, texts, strict=True)
        ]
        return score_benchmark(bench_of(items), answers)

    whole = run("cgbench", [[RIGHT, RIGHT], [RIGHT, WRONG]])
    clues = run("cgbench_clue", [[RIGHT, RIGHT], [RIGHT, RIGHT]])
    figures = summarise(whole, [clues], resamples=10)["figures"]["strict"]
    assert figures == {"clue-acc": 1.0, "CRR": pytest.approx(0.75)}
    # 1/0 of the second seed is no figure, and the mean is over those that there are.
    figures = summarise(whole, [run("cgbench_clue", [[RIGHT, WRONG], [WRONG, WRONG]])], resamples=10)["figures"]
    assert figures["strict"] == {"clue-acc": 0.25, "CRR": 2.0}
    assert summarise(whole, resamples=10)["figures"]["strict"] == {}


def test_the_tables_say_what_they_know():
    scores = scored([RIGHT] * 30 + [WRONG] * 10)
    base = scored([RIGHT] * 29 + [WRONG] * 11)
    summary = summarise(scores, resamples=200)
    summary["baseline"] = compare(scores, rows_of(base), same_budget=False, resamples=200)
    results = {"benchmarks": {"video_mme": summary}}
    (row,) = summary_rows(results)
    assert row[:4] == ["video_mme", "accuracy", "40", "75.0"] and row[5:] == ["75.0", "–"]
    (row,) = baseline_rows(results)
    assert row[1] == "40" and row[2].startswith("+2.5 (") and row[2].endswith("not distinguishable")
    assert row[3] == "+1 −0, p = 1" and row[4] == "not compared: the runs have different budgets"
