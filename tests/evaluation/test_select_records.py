"""`verl-care select` with a real model on the CPU: what it was taught comes back as pass rates."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from verl_care.cli import app
from verl_care.data.records import DataError, write_rows
from verl_care.data.selection import KeepRules
from verl_care.evaluation import asking
from verl_care.evaluation.engines import EngineConfig
from verl_care.evaluation.recorded import EvaluationError
from verl_care.evaluation.select_records import SelectConfig, run_selection
from verl_care.workers.rollout_log import RolloutLog

RUNS = 8


@pytest.fixture(scope="module")
def data(taught, make_row, tmp_path_factory) -> Path:
    """Ten easy, eight medium and six hard records, mixed, from two sources."""
    path = tmp_path_factory.mktemp("records") / "train.parquet"
    difficulties = ["easy"] * 10 + ["medium"] * 8 + ["hard"] * 6
    order = [difficulties[(7 * n) % 24 if n % 24 else 0] for n in range(24)]
    rows = [
        make_row(difficulty, n, taught.clips[n % 6], data_source=("first", "second")[n % 2])
        for n, difficulty in enumerate(order)
    ]
    assert Counter(order) == Counter(difficulties)
    write_rows(rows, path)
    return path


def config_of(taught, data, out_dir, **changes) -> SelectConfig:
    engine = EngineConfig(model=str(taught.model), max_model_len=512, **changes.pop("engine", {}))
    settings = {"data": (str(data),), "out_dir": str(out_dir), "runs": RUNS, "max_tokens": 40, "batch_size": 24}
    return SelectConfig(engine=engine, **{**settings, **changes})


@pytest.fixture(scope="module")
def uninterrupted(taught, data, tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("selection") / "whole"
    return out_dir, run_selection(config_of(taught, data, out_dir))


def difficulty_by_key(path) -> dict[str, str]:
    rows = pq.read_table(path).to_pylist()
    return {f"{row['data_source']}/{row['extra_info']['index']}": row["extra_info"]["difficulty"] for row in rows}


def test_a_planted_mix_of_difficulties_is_recovered(uninterrupted, data):
    out_dir, outcome = uninterrupted
    planted = difficulty_by_key(data)
    rates = {score.prompt_key: score.pass_rate for score in outcome.selection.scores}
    by_difficulty = {name: [rates[key] for key in rates if planted[key] == name] for name in ("easy", "medium", "hard")}
    # The model is sampled at temperature 1, so a rare slip is possible among easy and hard ones.
    assert min(by_difficulty["easy"]) >= 7 / 8 and max(by_difficulty["hard"]) <= 1 / 8
    assert all(0 < rate < 1 for rate in by_difficulty["medium"])
    kept = difficulty_by_key(out_dir / "subset.parquet")
    assert sum(name == "medium" for name in kept.values()) == 8
    # What else is kept had a slip: its runs differ, as the rule says.
    assert all(0 < rates[key] < 1 for key in kept)
    assert len(kept) <= 12


def test_the_subset_keeps_all_columns_and_the_table_every_record(uninterrupted, data):
    out_dir, outcome = uninterrupted
    assert pq.read_schema(out_dir / "subset.parquet").names == pq.read_schema(data).names
    scores = pq.read_table(out_dir / "scores.parquet").to_pylist()
    assert len(scores) == 24 and {row["runs"] for row in scores} == {RUNS}
    assert json.loads((out_dir / "selection.json").read_text())["kept"] == len(outcome.selection.kept)


def test_the_page_shows_each_source_and_type_before_and_after(uninterrupted):
    out_dir, _ = uninterrupted
    page = (out_dir / "selection.html").read_text()
    assert page.count("<img") == 2 and "first, multiple choice" in page and "second, multiple choice" in page
    assert "<script" not in page and "http" not in page


def test_a_budget_is_shared_among_sources(taught, data, uninterrupted):
    out_dir, _ = uninterrupted
    config = config_of(taught, data, out_dir.parent / "budget", rules=KeepRules(keep=4, balance="equal"))
    # The answers are there already: a budget costs no inference.
    (out_dir.parent / "budget").mkdir()
    for name in ("answers.jsonl", "run.json"):
        (out_dir.parent / "budget" / name).write_bytes((out_dir / name).read_bytes())
    outcome = run_selection(config)
    assert sorted(key.partition("/")[0] for key in outcome.selection.kept) == ["first"] * 2 + ["second"] * 2


@pytest.mark.timeout(400)
def test_a_killed_selection_resumes_to_the_subset_of_an_uninterrupted_one(taught, data, uninterrupted, tmp_path):
    arguments = [str(data), "--model", str(taught.model), "--out", str(tmp_path), "--runs", str(RUNS)]
    arguments += ["--max-tokens", "40", "--max-model-len", "512", "--write-every", "24"]
    answers = tmp_path / "answers.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "verl_care.cli", "select", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        while process.poll() is None and (not answers.exists() or answers.read_bytes().count(b"\n") < 48):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    finally:
        process.kill()
    written = answers.read_bytes().count(b"\n")
    assert 48 <= written < 24 * RUNS, "it ended before it was killed"
    resumed = CliRunner().invoke(app, ["select", *arguments])
    assert resumed.exit_code == 0, resumed.output
    out_dir, _ = uninterrupted
    for name in ("subset.parquet", "scores.parquet"):
        assert pq.read_table(tmp_path / name).equals(pq.read_table(out_dir / name)), name
    # What the killed process had written was not asked again.
    assert answers.read_bytes().count(b"\n") == 24 * RUNS


@pytest.mark.timeout(400)
def test_copies_in_ray_give_the_same_subset(taught, data, uninterrupted, tmp_path, ray_tmpdir):
    outcome = run_selection(config_of(taught, data, tmp_path, engine={"replicas": 2}))
    assert outcome.selection == uninterrupted[1].selection
    assert json.loads((tmp_path / "run.json").read_text())["engine"]["replicas"] == 2


@pytest.fixture
def ray_tmpdir(monkeypatch, tmp_path_factory):
    """A short folder of Ray's own, and two cores to count on whatever the machine has."""
    import shutil
    import tempfile

    folder = tempfile.mkdtemp(prefix="vc-", dir="/tmp")
    monkeypatch.setenv("RAY_TMPDIR", folder)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_a_run_s_rollouts_give_pass_rates_without_a_model(data, tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "build_engine", lambda config: pytest.fail("a model was loaded"))
    keys = list(difficulty_by_key(data))[:4]
    log = RolloutLog(tmp_path / "run", max_bytes=1 << 20)
    accuracies = {1: [1, 1, 0, 1], 2: [1, 0, 0, 1], 9: [0, 1, 1, 1]}
    for step, values in accuracies.items():
        columns = {"uid": keys, "prompt_key": keys, "data_source": [key.partition("/")[0] for key in keys]}
        log.write(step, 0, {**columns, "acc": [float(v) for v in values], "reward_error": [0.0] * 4})
    config = SelectConfig(data=(str(data),), out_dir=str(tmp_path / "out"), run_dir=str(tmp_path / "run"), last_step=2)
    outcome = run_selection(config)
    assert [score.pass_rate for score in outcome.selection.scores] == [1.0, 0.5, 0.0, 1.0]
    assert outcome.selection.kept == {keys[1]}


def test_answers_that_fail_are_no_runs(taught, make_row, tmp_path):
    rows = [make_row("medium", n, taught.clips[0]) for n in range(2)]
    rows.append(make_row("medium", 2, tmp_path / "gone.mp4"))
    write_rows(rows, tmp_path / "train.parquet")
    outcome = run_selection(config_of(taught, tmp_path / "train.parquet", tmp_path / "out", runs=8))
    assert outcome.failed == 8
    assert [score.runs for score in outcome.selection.scores] == [8, 8, 0]
    assert outcome.selection.scores[2].outcome == "too few runs"


def test_nothing_to_keep_is_an_error_that_says_why(taught, make_row, tmp_path):
    write_rows([make_row("hard", 0, taught.clips[0], ground_truth="D")], tmp_path / "train.parquet")
    with pytest.raises(DataError, match="nothing passes the keep rules .*too hard 1"):
        run_selection(config_of(taught, tmp_path / "train.parquet", tmp_path / "out", runs=2))


def test_answers_of_another_model_are_refused(taught, data, uninterrupted):
    out_dir, _ = uninterrupted
    config = config_of(taught, data, out_dir, engine={"dtype": "bfloat16"})
    with pytest.raises(EvaluationError, match="holds answers of another run"):
        run_selection(config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a model to ask, or the folder"),
        (["--model", "m", "--temperature", "0"], "temperature"),
        (["--model", "m", "--min-variance", "0.1", "--variance-quantile", "0.5"], "variance_quantile"),
    ],
)
def test_a_wrong_call_exits_with_2(arguments, message, tmp_path):
    done = CliRunner().invoke(app, ["select", "train.parquet", "--out", str(tmp_path), *arguments])
    assert done.exit_code == 2 and message in " ".join(done.output.replace("│", " ").split())
