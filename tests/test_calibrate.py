"""Calibration: the closed form against the moving average itself, worked figures, warnings, both sources."""

from __future__ import annotations

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from verl_care import calibrate as module
from verl_care.calibrate import Rollout, calibrate, decay_for_noise, pass_rate_needed, steps_to
from verl_care.cli import app
from verl_care.config import CareConfig
from verl_care.data.records import to_row, write_rows
from verl_care.evaluation import asking
from verl_care.evaluation.engines import EngineConfig
from verl_care.evaluation.interface import TRUNCATED, Completion
from verl_care.evaluation.select_records import SelectConfig
from verl_care.shaping.competence import update_competence
from verl_care.workers.rollout_log import SCHEMA, RolloutLog

run = CliRunner().invoke


@settings(max_examples=60, deadline=None)
@given(
    threshold=st.floats(0.05, 0.95),
    start=st.floats(0, 1),
    pass_rate=st.floats(0, 1),
    decay=st.sampled_from([0.9, 0.99]),
)
def test_the_predicted_step_is_the_averages_own(threshold, start, pass_rate, decay):
    predicted = steps_to(threshold, start, pass_rate, decay)
    competence, found = start, None
    for step in range(1, 3001):
        competence = update_competence(competence, pass_rate, decay)
        if competence >= threshold:
            found = step
            break
    if abs(pass_rate - threshold) < 1e-3:
        return  # the average creeps along the threshold; rounding decides
    assert predicted == found or (predicted is not None and found is not None and abs(predicted - found) <= 1)


def test_steps_by_hand():
    # 0.9 - 0.3 * 0.99^t >= 0.75 from 0.99^t <= 0.5 on: t = ln 2 / -ln 0.99 = 68.97.
    assert steps_to(0.75, 0.60, 0.9, 0.99) == 69
    assert steps_to(0.65, 0.60, 0.60, 0.99) is None
    assert steps_to(0.65, 0.70, 0.80, 0.99) == 1
    # 0.99^100 = 0.366: (0.65 - 0.6 * 0.366) / 0.634.
    assert pass_rate_needed(0.65, 0.60, 0.99, 100) == pytest.approx(0.6789, abs=1e-4)
    assert math.isinf(pass_rate_needed(0.65, 0.60, 1.0, 100))


def test_the_decay_for_a_noise_gives_that_noise():
    decay = decay_for_noise(0.05, 0.0125)
    values = torch.randn(400_000, generator=torch.Generator().manual_seed(0)) * 0.05
    average, seen = 0.0, []
    for value in values.tolist():
        average = update_competence(average, value, decay)
        seen.append(average)
    assert float(torch.tensor(seen[1000:]).std()) == pytest.approx(0.0125, rel=0.02)
    assert decay_for_noise(0.01, 0.05) == 0.0


def make_rollouts(rates, length=400.0, size=8):
    return [
        Rollout(f"p{p}", float(i < round(rate * size)), length + 10 * i)
        for p, rate in enumerate(rates)
        for i in range(size)
    ]


def test_figures_of_a_checkpoint_by_hand():
    result = calibrate(make_rollouts([0.0, 0.5, 1.0, 1.0]), steps=500, prompts_per_step=64)
    assert (result.prompts, result.responses) == (4, 32)
    assert result.pass_rate == pytest.approx(0.625)
    # Sample deviation of 0, 0.5, 1, 1 is 0.4787; over the root of 4.
    assert result.pass_rate_error == pytest.approx(0.23936, abs=1e-4)
    assert (result.all_right, result.all_wrong) == (0.5, 0.25)
    assert (result.length_mean, result.length_p50) == (435.0, 435.0)
    # Right: 4 of the second prompt (mean 415), 8 each of two (435).
    assert result.length_correct == pytest.approx((4 * 415 + 16 * 435) / 20)
    assert result.threshold_steps == {"explore": None, "refine": None, "concise": None}
    # The published proportions, from 0.625 on: + 0.375 / 8, / 4, * 3 / 8.
    assert result.suggested["explore_threshold"] == pytest.approx(0.672)
    assert result.suggested["refine_threshold"] == result.suggested["anchor"] == pytest.approx(0.719)
    assert result.suggested["concise_threshold"] == pytest.approx(0.766)
    assert result.suggested["length_floor_tokens"] == 431
    assert result.suggested["ema_decay"] == 0.98
    assert "care.shaping.ema_decay=0.98" in result.overrides()


def test_the_published_start_suggests_the_published_thresholds():
    suggested = calibrate(make_rollouts([0.5, 0.625, 0.625, 0.65]), steps=5000).suggested
    assert suggested["initial_competence"] == pytest.approx(0.594, abs=0.001)
    # 5/8 of 8 responses three times and 4/8 once: 0.594; close to 0.60, so close to 0.65, 0.70, 0.75 and λ = 0.99.
    thresholds = [suggested[f"{name}_threshold"] for name in ("explore", "refine", "concise")]
    assert thresholds == pytest.approx([0.65, 0.70, 0.75], abs=0.006)
    assert suggested["ema_decay"] == 0.99


@pytest.mark.parametrize(
    ("rates", "config", "expected"),
    [
        ([0.25, 0.5], CareConfig(), "never leaves explore-hard: at a pass rate of 0.38"),
        ([1.0, 0.875], CareConfig(ema_decay=0.7), "concise at once: step 2 of 1000"),
        ([0.5, 0.75], CareConfig(length_floor_tokens=9000), "length_floor_tokens=9000 is more than twice"),
        ([0.0, 1.0], CareConfig(ema_decay=0.5), "jitters by"),
        ([0.0, 1.0], CareConfig(), "50% of the prompts are all right and 50% all wrong"),
    ],
)
def test_warnings(rates, config, expected):
    warnings = calibrate(make_rollouts(rates), config, prompts_per_step=8).warnings
    assert any(expected in warning for warning in warnings), warnings


def test_a_checkpoint_that_fits_the_constants_gives_no_warning():
    assert calibrate(make_rollouts([0.625, 0.75, 0.875, 0.75]), steps=1000).warnings == ()


def test_nothing_to_calibrate_on_is_an_error():
    with pytest.raises(module.CalibrationError, match="no rollouts"):
        calibrate([])


@pytest.fixture
def logged(tmp_path):
    """A run of three updates of 4 prompts with 2 responses each."""
    log = RolloutLog(tmp_path, 2**30)
    for step in (1, 2, 3):
        accuracy = [1.0, 0.0] * 4 if step < 3 else [1.0] * 8
        log.write(
            step,
            0,
            {
                "uid": [f"u{step}{i // 2}" for i in range(8)],
                "prompt_key": [f"toy/{i // 2}" for i in range(8)],
                "acc": accuracy,
                "score": accuracy,
                "bonus": [0.0] * 8,
                "length": [100 * step] * 8,
            },
        )
    return tmp_path


def test_a_runs_first_rollouts_are_read_until_there_are_prompts_enough(logged):
    assert len(module.rollouts_of_run(logged, 5)) == 16
    assert {rollout.length for rollout in module.rollouts_of_run(logged, 4)} == {100.0}
    # The same records in a later step are other groups.
    assert len({rollout.prompt for rollout in module.rollouts_of_run(logged, 99)}) == 12
    assert {rollout.length for rollout in module.rollouts_of_run(logged, 4, first_step=3)} == {300.0}
    with pytest.raises(module.CalibrationError, match="no rollouts from step 9 on"):
        module.rollouts_of_run(logged, 4, first_step=9)


def test_the_command_prints_what_to_set(logged):
    result = run(app, ["calibrate", "--from-run", str(logged), "--prompts", "8", "--steps", "200"])
    assert result.exit_code == 0, result.output
    assert "0.500 ± 0.000" in result.output and "never leaves explore-hard" in result.output
    assert "care.shaping.initial_competence=0.5" in result.output
    result = run(
        app, ["calibrate", "--from-run", str(logged), "--prompts", "8", "--set", "explore_threshold=0.4", "--json"]
    )
    found = json.loads(result.output)
    assert found["threshold_steps"]["explore"] == 1 and found["pass_rate"] == 0.5
    assert f"care.shaping.length_floor_tokens={found['suggested']['length_floor_tokens']:g}" in found["overrides"]


def test_wrong_calls_and_missing_runs_end_in_one_line(tmp_path, logged):
    assert run(app, ["calibrate"]).exit_code == 2
    assert run(app, ["calibrate", "--from-run", str(logged), "--model", "m"]).exit_code == 2
    assert run(app, ["calibrate", "--from-run", str(logged), "--set", "no_such=1"]).exit_code == 2
    result = run(app, ["calibrate", "--from-run", str(tmp_path / "care_rollouts" / "1.parquet"), "--first-step", "5"])
    assert result.exit_code == 1 and "no rollouts from step 5" in result.stderr
    broken = tmp_path / "broken" / "1.parquet"
    broken.parent.mkdir()
    pq.write_table(pa.table({name: [] for name in SCHEMA.names[:3]}), broken)
    result = run(app, ["calibrate", "--from-run", str(broken.parent)])
    assert result.exit_code == 1 and result.stderr.startswith("error: ") and "Traceback" not in result.stderr


class _Scripted:
    """An engine: right for even samples, one token more a sample, the last one cut."""

    asked = 0

    def __call__(self, requests):
        type(self).asked += len(requests)
        answers = "ABABABAB"
        return [
            Completion(
                f"<think>x</think><answer>{answers[request.sample]}</answer>",
                num_tokens=10 + request.sample,
                finish_reason=TRUNCATED if request.sample == 3 else "stop",
            )
            for request in requests
        ]

    def prefetch(self, requests):
        pass

    def describe(self):
        return {"name": "scripted"}

    def close(self):
        pass


def test_a_model_is_asked_once_about_prompts_drawn_by_the_seed(tmp_path, monkeypatch):
    rows = [
        to_row(
            data_source="toy",
            index=i,
            question=f"Question {i}?",
            problem_type="multiple choice",
            options=["A. yes", "B. no"],
            ground_truth="A",
        )
        for i in range(12)
    ]
    write_rows(rows, tmp_path / "train.parquet")
    _Scripted.asked = 0
    monkeypatch.setattr(asking, "build_engine", lambda config: _Scripted())
    (tmp_path / "model").mkdir()
    config = SelectConfig(
        data=(str(tmp_path / "train.parquet"),),
        out_dir=str(tmp_path / "out"),
        engine=EngineConfig(model=str(tmp_path / "model")),
        runs=4,
    )

    def ask(seed):
        return module.rollouts_of_model(config, 5, seed, lambda done, total, failed: None)

    rollouts = ask(seed=0)
    assert _Scripted.asked == 20
    result = calibrate(rollouts)
    assert (result.prompts, result.responses, result.pass_rate, result.cut) == (5, 20, 0.5, 0.25)
    assert result.length_correct == pytest.approx((10 + 12) / 2)
    assert ask(seed=0) == rollouts and _Scripted.asked == 20
    assert {rollout.prompt for rollout in ask(seed=1)} != {rollout.prompt for rollout in rollouts}
