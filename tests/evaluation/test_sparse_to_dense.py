import asyncio
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_care.evaluation import Completion, Question, SparseToDense

OPTIONS = ["A. cup", "B. pen", "C. key"]
DOCS = Path(__file__).parents[2] / "docs" / "sparse_to_dense.md"


def mc(key, gold="A", **changes):
    return Question(key=key, prompt=key, options=OPTIONS, ground_truth=gold, **changes)


class Engine:
    """Gives the answers of a script {(question, frames): [answer, …]} and keeps the batches it was asked."""

    def __init__(self, script):
        self.script = script
        self.batches = []

    def __call__(self, requests):
        self.batches.append(list(requests))
        return [self.answer(request) for request in requests]

    def answer(self, request):
        entry = self.script[request.question.key, request.num_frames][request.sample]
        if not isinstance(entry, str):
            return entry
        return Completion(f"<think>so</think><answer>{entry}", num_tokens=10)


def test_the_published_course():
    # One question agrees at 32, one at 64, one never: A A B B B at the last level.
    script = {
        ("easy", 32): list("AAAAA"),
        ("middle", 32): list("AAAAB"),
        ("middle", 64): list("BBBBB"),
        ("hard", 32): list("ABCAB"),
        ("hard", 64): list("AAAAB"),
        ("hard", 128): list("AABBB"),
    }
    engine = Engine(script)
    outcome = SparseToDense().run([mc("easy"), mc("middle"), mc("hard")], engine)

    assert [Counter((r.question.key, r.num_frames) for r in batch) for batch in engine.batches] == [
        {("easy", 32): 5, ("middle", 32): 5, ("hard", 32): 5},
        {("middle", 64): 5, ("hard", 64): 5},
        {("hard", 128): 5},
    ]
    assert [result.answer for result in outcome.results] == ["A", "B", "B"]
    assert [result.decided for result in outcome.results] == [True, True, False]
    report = outcome.report
    assert report.acc_strict == report.acc_lenient == pytest.approx(1 / 3)
    assert report.average_frames == pytest.approx((32 + 64 + 128) / 3)
    # 5 * 32; 5 * (32 + 64); 5 * (32 + 64 + 128)
    assert report.average_frames_read == pytest.approx((160 + 480 + 1120) / 3)
    # 10 tokens an answer: 5, 10 and 15 answers
    assert report.average_tokens == pytest.approx(100)
    assert report.decided_share == {32: pytest.approx(1 / 3), 64: pytest.approx(1 / 3), 128: 0.0}
    assert report.undecided_share == pytest.approx(1 / 3)
    assert report.to_dict()["decided_share"]["128"] == 0.0


def test_requests_of_a_question_stand_together_and_differ_in_their_sampling_alone():
    engine = Engine({(key, 32): list("AAAAA") for key in "xy"})
    SparseToDense().run([mc("x"), mc("y")], engine)
    (batch,) = engine.batches
    assert [request.question.key for request in batch] == ["x"] * 5 + ["y"] * 5
    assert all(request.question is batch[0].question and request.num_frames == 32 for request in batch[:5])
    # Video-RTS, video_rts_eval.py
    assert [request.sampling["temperature"] for request in batch[:5]] == [0.8, 0.95, 1.1, 1.25, 1.4]
    assert [request.sampling["top_p"] for request in batch[:5]] == [0.70, 0.75, 0.80, 0.85, 0.90]
    shared = {"top_k": 50, "presence_penalty": 0.4, "frequency_penalty": 0.2, "max_tokens": 1024, "stop": ["</answer>"]}
    assert all(shared.items() <= request.sampling.items() for request in batch)
    assert len({request.sampling["seed"] for request in batch}) == 10


def test_seeds_do_not_depend_on_the_order_of_the_questions():
    seeds = []
    for keys in ("xy", "yx"):
        engine = Engine({(key, 32): list("AAAAA") for key in "xy"})
        SparseToDense().run([mc(key) for key in keys], engine)
        seeds.append({(r.question.key, r.sample): r.sampling["seed"] for r in engine.batches[0]})
    assert seeds[0] == seeds[1]


def test_answers_in_other_words_agree():
    engine = Engine({("x", 32): ["A", "a.", "(A)", "A. cup", "cup"]})
    (result,) = SparseToDense().run([mc("x")], engine).results
    assert result.decided and result.answer == "A" and result.acc_lenient == 1.0


def test_five_answers_that_cannot_be_read_are_no_agreement():
    script = {("x", 32): ["dunno"] * 5, ("x", 64): ["A or B"] * 5, ("x", 128): list("AAAAA")}
    (result,) = SparseToDense().run([mc("x")], Engine(script)).results
    assert [level.agreed for level in result.levels] == [False, False, True]
    assert result.num_frames == 128 and result.acc_strict == 1.0


def test_an_unread_answer_breaks_unanimity():
    script = {("x", 32): ["A", "A", "A", "A", "dunno"], ("x", 64): list("AAAAA")}
    assert SparseToDense().run([mc("x")], Engine(script)).results[0].num_frames == 64
    assert SparseToDense(threshold=0.8).run([mc("x")], Engine(script)).results[0].num_frames == 32


@pytest.mark.parametrize(("threshold", "needed"), [(1.0, 5), (0.9, 5), (0.8, 4), (0.6, 3), (0.6000001, 4)])
def test_answers_that_must_agree(threshold, needed):
    strategy = SparseToDense(threshold=threshold)
    assert strategy.needed == needed
    for agreeing in range(1, 6):
        script = {("x", frames): ["A"] * agreeing + ["dunno"] * (5 - agreeing) for frames in (32, 64, 128)}
        assert strategy.run([mc("x")], Engine(script)).results[0].decided == (agreeing >= needed)


def test_pooled_votes_count_all_levels():
    script = {("x", 32): list("AAABC"), ("x", 64): list("AABBB")}
    last = SparseToDense(frames=(32, 64)).run([mc("x")], Engine(script)).results[0]
    pooled = SparseToDense(frames=(32, 64), vote="pooled").run([mc("x")], Engine(script)).results[0]
    assert (last.answer, pooled.answer) == ("B", "A")  # 3 B of 5; 5 A of 10


def test_a_tie_of_the_pool_goes_to_the_denser_level():
    script = {("x", 32): list("AABB"), ("x", 64): list("BBAA")}
    strategy = SparseToDense(frames=(32, 64), samples=4, vote="pooled")
    assert strategy.run([mc("x")], Engine(script)).results[0].answer == "B"


def test_pooled_votes_do_not_overrule_an_agreement():
    script = {("x", 32): list("AAAAB"), ("x", 64): list("AAAAB"), ("x", 128): list("BBBBB")}
    assert SparseToDense(vote="pooled").run([mc("x")], Engine(script)).results[0].answer == "B"


@pytest.mark.parametrize(
    ("available", "asked"),
    [
        (None, [32, 64, 128]),
        (500, [32, 64, 128]),
        (100, [32, 64, 100]),
        (64, [32, 64]),
        (33, [32]),
        (20, [20]),
        (1, [2]),
    ],
)
def test_a_clip_without_more_frames_ends_its_question(available, asked):
    script = {("x", frames): list("ABCAB") for frames in asked}
    engine = Engine(script)
    outcome = SparseToDense().run([mc("x", available_frames=available)], engine)
    assert [level.num_frames for level in outcome.results[0].levels] == asked
    assert len(engine.batches) == len(asked)
    assert outcome.report.undecided_share == 1.0


def test_failed_questions_stay_in_the_denominator():
    broken = [None, RuntimeError("out of memory"), None, TimeoutError(), None]
    script = {("good", 32): list("AAAAA"), **{("bad", frames): broken for frames in (32, 64, 128)}}
    outcome = SparseToDense().run([mc("good"), mc("bad")], Engine(script))
    bad = outcome.results[1]
    assert bad.failed and bad.answer is None and bad.acc_strict == 0.0
    assert bad.levels[0].errors[:2] == ("no completion", "RuntimeError: out of memory")
    report = outcome.report
    assert (report.num_questions, report.num_failed, report.num_unanswered, report.acc_strict) == (2, 1, 1, 0.5)
    assert report.average_frames == (32 + 128) / 2


def test_an_unread_last_level_falls_back_to_the_one_before():
    script = {("x", 32): list("AABBC"), ("x", 64): list("BBBAA"), ("x", 128): [None] * 5}
    (result,) = SparseToDense().run([mc("x")], Engine(script)).results
    assert result.answer == "B" and not result.failed and not result.decided


def test_without_ground_truth_there_is_no_accuracy():
    engine = Engine({("x", 32): list("AAAAA"), ("y", 32): list("AAAAA")})
    outcome = SparseToDense().run([mc("x", gold=None), mc("y")], engine)
    assert outcome.report.acc_strict is None and outcome.results[0].answer == "A"
    assert outcome.results[1].acc_strict == 1.0


def test_bare_texts_and_an_engine_without_token_counts():
    def generate(requests):
        return ["B" for _ in requests]

    tagged = SparseToDense(frames=(8, 16)).run([mc("x", gold="B")], generate)
    assert tagged.report.num_unanswered == 1 and tagged.report.num_failed == 0
    bare = SparseToDense(frames=(8, 16), tagged=False).run([mc("x", gold="B")], generate)
    assert bare.report.acc_strict == 1.0 and bare.report.average_frames == 8
    assert bare.report.average_tokens is None


def test_fixed_greedy_and_equal_compute():
    fixed = SparseToDense.fixed(64)
    outcome = fixed.run([mc("x")], Engine({("x", 64): list("AABBB")}))
    assert outcome.results[0].answer == "B" and outcome.report.average_frames_read == 5 * 64

    greedy = SparseToDense.greedy(32)
    engine = Engine({("x", 32): ["C"]})
    assert greedy.run([mc("x")], engine).results[0].answer == "C"
    sampling = engine.batches[0][0].sampling
    assert (sampling["temperature"], sampling["top_p"], sampling["presence_penalty"]) == (0.0, 1.0, 0.0)

    script = {("x", 32): list("AAAAB"), ("x", 64): list("AAAAA")}
    report = SparseToDense().run([mc("x")], Engine(script)).report
    # 5 * (32 + 64) = 480 frames: 15 answers at 32, 7.5 -> 8 at 64, 3.75 -> 4 at 128
    assert [SparseToDense().at_equal_compute(report, frames).samples for frames in (32, 64, 128)] == [15, 8, 4]


def test_numbers_and_spans_are_scored_by_their_type():
    questions = [
        Question(key="n", prompt=0, problem_type="numerical", ground_truth="3.5"),
        Question(key="s", prompt=0, problem_type="temporal grounding", ground_truth="[[2, 6]]"),
    ]
    script = {("n", 32): ["3.50", "7/2", "3.5"], ("s", 32): ["4 to 6", "00:04 - 00:06", '{"start": 4, "end": 6}']}
    outcome = SparseToDense(samples=3).run(questions, Engine(script))
    assert [result.decided for result in outcome.results] == [True, True]
    assert [result.acc_lenient for result in outcome.results] == [1.0, 0.5]


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ([], "questions: none given"),
        ([mc("x"), mc("x")], "'x' is there twice"),
        ([mc("x", problem_type="riddle")], "'x': problem_type is 'riddle'"),
        ([mc("x", gold=" ")], "question/x: reward_model.ground_truth"),
        ([mc("x", gold="6 to 2", problem_type="temporal grounding")], r"question/x: span \[6, 2\] is reversed"),
    ],
)
def test_faulty_questions_are_named_before_anything_is_asked(questions, message):
    engine = Engine({})
    with pytest.raises(ValueError, match=message):
        SparseToDense().run(questions, engine)
    assert engine.batches == []


def test_an_engine_that_loses_an_answer_is_an_error():
    with pytest.raises(ValueError, match="expected 5 entries, one a request; got 4"):
        SparseToDense().run([mc("x")], lambda requests: ["A"] * 4)


def test_an_engine_that_breaks_ends_the_run():
    def generate(requests):
        raise ConnectionError("no server")

    with pytest.raises(ConnectionError, match="no server"):
        SparseToDense().run([mc("x")], generate)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("frames", ()),
        ("frames", (64, 32)),
        ("frames", (32, 32)),
        ("frames", (31,)),
        ("frames", (0,)),
        ("samples", 0),
        ("threshold", 0.5),
        ("threshold", 1.1),
        ("vote", "first"),
        ("top_p", 0.0),
        ("temperature", -1.0),
        ("frame_factor", 0),
        ("max_tokens", 0),
    ],
)
def test_bad_settings_are_named(field, value):
    with pytest.raises(ValueError, match=f"^{field}: expected"):
        SparseToDense(**{field: value})


levels = st.lists(st.integers(1, 40).map(lambda n: 2 * n), min_size=1, max_size=4, unique=True).map(sorted).map(tuple)
entries = st.sampled_from(["A", "B", "cup", "A or B", "", "\ud800"]) | st.none() | st.just(OSError("gone"))


@settings(deadline=None)
@given(st.data(), levels, st.integers(1, 4), st.sampled_from(["last", "pooled"]), st.floats(0.51, 1.0))
def test_any_course_keeps_every_question_once(data, frames, samples, vote, threshold):
    strategy = SparseToDense(frames=frames, samples=samples, vote=vote, threshold=threshold)
    available = data.draw(st.lists(st.none() | st.integers(1, 100), min_size=1, max_size=4))
    questions = [mc(str(n), available_frames=limit) for n, limit in enumerate(available)]

    def generate(requests):
        given_ = data.draw(st.lists(entries, min_size=len(requests), max_size=len(requests)))
        return [Completion(f"<answer>{entry}", 1) if isinstance(entry, str) else entry for entry in given_]

    outcome = strategy.run(questions, generate)
    report = outcome.report
    assert [result.question for result in outcome.results] == questions
    assert sum(report.decided_share.values()) + report.undecided_share == pytest.approx(1.0)
    assert 0.0 <= report.acc_strict <= report.acc_lenient <= 1.0
    for result in outcome.results:
        asked = [level.num_frames for level in result.levels]
        assert asked == sorted(set(asked)) and asked[-1] <= max(frames[-1], 2)
        assert all(not level.agreed for level in result.levels[:-1])
        assert all(vote is not None for level in result.levels if level.agreed and samples == 1 for vote in level.votes)
        assert (result.answer is None) == all(vote is None for level in result.levels for vote in level.votes)


def blocks():
    return re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)


def test_the_documented_example_runs(capsys):
    runs, _ = blocks()
    exec(compile(runs, str(DOCS), "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out.strip().splitlines()
    promised = re.search(r"```text\n(.*?)```", DOCS.read_text(), re.DOTALL).group(1).strip().splitlines()
    assert printed == promised


def test_the_documented_client_sends_one_request_an_answer_and_keeps_failures():
    class Client:
        def __init__(self):
            self.sent = []
            self.chat = self.completions = self

        async def create(self, **request):
            self.sent.append(request)
            if len(self.sent) == 2:
                raise OSError("gone")
            message = type("Message", (), {"content": "<think>so</think><answer>B"})
            choice = type("Choice", (), {"message": message})
            return type("Response", (), {"choices": [choice], "usage": type("Usage", (), {"completion_tokens": 7})})

    _, client_block = blocks()
    namespace = {"__name__": "example"}
    exec(compile(client_block, str(DOCS), "exec"), namespace)
    client = Client()
    namespace["frames_of"] = lambda path, num_frames: [f"data:image/jpeg;base64,{n}" for n in range(num_frames)]
    prompt = {"video": "clip.mp4", "text": "Which?"}
    question = Question(key="x", prompt=prompt, options=OPTIONS, ground_truth="B")
    generate = namespace["engine"](client, "model")
    outcome = SparseToDense(frames=(2, 4), samples=2).run([question], generate)
    assert outcome.results[0].answer == "B"
    assert outcome.results[0].levels[0].errors == ("OSError: gone",)
    assert [sum(part["type"] == "image_url" for part in sent["messages"][0]["content"]) for sent in client.sent] == [
        2,
        2,
        4,
        4,
    ]
    first, _, third, fourth = client.sent
    assert third["messages"] == fourth["messages"] and third["seed"] != fourth["seed"]
    assert first["extra_body"] == {"top_k": 50} and first["max_tokens"] == 1024
    assert asyncio.iscoroutinefunction(client.create)


def test_import_is_light():
    code = (
        "import sys, verl_care.evaluation, verl_care.data.selection\n"
        "heavy = {'torch', 'verl', 'ray', 'numpy', 'transformers', 'vllm', 'openai', 'pyarrow', 'av', 'sympy'}\n"
        "sys.exit(','.join(heavy & set(sys.modules)) or None)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
