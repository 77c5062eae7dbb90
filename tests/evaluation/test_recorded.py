import json
import os
import subprocess
import sys

import pytest

from verl_care.evaluation.interface import Completion, Question, Request, RequestError
from verl_care.evaluation.recorded import AnswerLog, EvaluationError, RecordedEngine, cut_batches, request_id


def requests_of(count, samples=1):
    questions = [
        Question(key=str(n), prompt=[{"role": "user", "content": [{"type": "text", "text": f"q{n}"}]}])
        for n in range(count)
    ]
    return [
        Request(question=q, sample=k, sampling={"temperature": 1.0, "seed": k})
        for q in questions
        for k in range(samples)
    ]


class Engine:
    def __init__(self, fail=()):
        self.fail, self.batches, self.fetched, self.closed = set(fail), [], [], False

    def __call__(self, requests):
        self.batches.append([request.question.key for request in requests])
        return [
            ValueError("no such clip")
            if request.question.key in self.fail
            else Completion(f"{request.question.key}/{request.sample}", 3, "stop", 7)
            for request in requests
        ]

    def prefetch(self, requests):
        self.fetched.append([request.question.key for request in requests])

    def describe(self):
        return {"engine": "stand-in"}

    def close(self):
        self.closed = True


def recorded(path, engine, **options):
    return RecordedEngine(AnswerLog(path), lambda: engine, **options)


def test_answers_come_back_in_order_and_are_not_asked_twice(tmp_path):
    requests = requests_of(5)
    engine = Engine()
    first = recorded(tmp_path / "a.jsonl", engine, batch_size=2)
    answers = first(requests)
    first.close()
    assert [answer.text for answer in answers] == [f"{n}/0" for n in range(5)]
    assert engine.batches == [["0", "1"], ["2", "3"], ["4"]] and engine.closed
    # The next batch's media are read while one is answered.
    assert engine.fetched[:2] == [["0", "1"], ["2", "3"]]
    again = recorded(tmp_path / "a.jsonl", pytest.fail)
    assert again(list(reversed(requests))) == list(reversed(answers))
    again.close()


def test_samples_of_a_question_stay_in_one_batch():
    assert [len(batch) for batch in cut_batches(requests_of(4, samples=3), 4)] == [6, 6]
    assert cut_batches([], 4) == []


def test_a_torn_last_line_is_cut_off_and_asked_again(tmp_path):
    path = tmp_path / "a.jsonl"
    requests = requests_of(4)
    first = recorded(path, Engine(), batch_size=2)
    whole = first(requests)
    first.close()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    engine = Engine()
    resumed = recorded(path, engine, batch_size=2)
    assert resumed(requests) == whole and engine.batches == [["3"]]
    resumed.close()


def test_a_line_that_is_no_answer_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": "x", "text": "y"}\nnonsense\n')
    with pytest.raises(EvaluationError, match="a.jsonl, line 2: not an answer"):
        AnswerLog(tmp_path / "a.jsonl")


def test_failures_are_kept_and_asked_again_on_request_alone(tmp_path):
    requests = requests_of(3)
    told = []
    first = recorded(tmp_path / "a.jsonl", Engine(fail="1"), on_progress=lambda *state: told.append(state))
    assert isinstance(first(requests)[1], RequestError)
    first.close()
    assert told[-1] == (3, 3, 1)
    kept = recorded(tmp_path / "a.jsonl", pytest.fail)
    assert str(kept(requests)[1]) == "ValueError: no such clip"
    kept.close()
    retried = recorded(tmp_path / "a.jsonl", Engine(), retry_failed=True)
    assert retried(requests)[1].text == "1/0"
    retried.close()


def test_an_engine_that_fails_for_everything_ends_the_run_and_leaves_nothing(tmp_path):
    engine = recorded(tmp_path / "a.jsonl", Engine(fail="012345"), batch_size=2)
    with pytest.raises(
        EvaluationError, match="all 2 requests of the first batch failed; the first: ValueError: no such"
    ):
        engine(requests_of(6))
    engine.close()
    assert (tmp_path / "a.jsonl").read_bytes() == b""


def test_a_request_is_named_by_prompt_frames_and_sampling():
    (first, second) = requests_of(1, samples=2)
    assert request_id(first) != request_id(second)
    same = Request(question=first.question, sample=0, sampling={"seed": 0, "temperature": 1.0})
    assert request_id(same) == request_id(first)
    more = Request(question=first.question, sample=0, num_frames=8, sampling=first.sampling)
    assert request_id(more) != request_id(first)


def test_any_text_survives_the_file(tmp_path):
    text = "line\nline\r\u2028 \ud800 ü \0"
    log = AnswerLog(tmp_path / "a.jsonl")
    (request,) = requests_of(1)
    log.add([request], [Completion(text)])
    log.close()
    again = AnswerLog(tmp_path / "a.jsonl")
    assert again.get(request).text == text
    again.close()


def test_two_processes_do_not_write_one_file(tmp_path):
    log = AnswerLog(tmp_path / "a.jsonl")
    with pytest.raises(EvaluationError, match="another process is writing it"):
        AnswerLog(tmp_path / "a.jsonl")
    log.close()
    AnswerLog(tmp_path / "a.jsonl").close()


def test_a_killed_process_loses_nothing_that_it_had_written(tmp_path):
    code = """
import os, signal, sys
from verl_care.evaluation.interface import Completion, Question, Request
from verl_care.evaluation.recorded import AnswerLog
log = AnswerLog(sys.argv[1])
log.add([Request(question=Question(key="0", prompt=[]))], [Completion("x")])
os.kill(os.getpid(), signal.SIGKILL)
"""
    path = tmp_path / "a.jsonl"
    subprocess.run([sys.executable, "-c", code, os.fspath(path)], timeout=120, check=False)
    assert [json.loads(line)["text"] for line in path.read_text().splitlines()] == ["x"]
    AnswerLog(path).close()


def test_more_samples_ask_only_what_is_new(tmp_path):
    requests = requests_of(3, samples=2)
    told = []
    first = recorded(tmp_path / "a.jsonl", Engine(), batch_size=2)
    first([request for request in requests if request.sample == 0])
    first.close()
    engine = Engine()
    again = recorded(tmp_path / "a.jsonl", engine, batch_size=2, on_progress=lambda *state: told.append(state))
    assert [answer.text for answer in again(requests)] == ["0/0", "0/1", "1/0", "1/1", "2/0", "2/1"]
    assert engine.batches == [["0"], ["1"], ["2"]] and told[0] == (3, 6, 0) and told[-1] == (6, 6, 0)
    again.close()
