"""The study of the inverted U: its plan, its figures by hand, and that it runs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "inverted_u.py"


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("inverted_u", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made_result(arm="care", seed=0, *, length, accuracy=None, stage=()):
    accuracy = [0.9] * len(length) if accuracy is None else accuracy
    return {"arm": arm, "seed": seed, "length": length, "accuracy": accuracy, "stage": list(stage)}


def test_every_arm_runs_with_one_seed_before_any_with_the_next(study):
    runs = study.plan(["care", "kimi"], None)
    assert runs == [
        ("care", 0),
        ("kimi", 0),
        ("care", 1),
        ("kimi", 1),
        ("care", 2),
        ("kimi", 2),
        ("care", 3),
        ("care", 4),
    ]
    assert study.plan(["kimi"], [7]) == [("kimi", 7)]


def test_figures_by_hand(study):
    # Means over ten steps; brevity is rewarded from step 21 on, where the accuracy dips for ten steps.
    result = made_result(
        length=[20.0, *[24.0] * 9, *[40.0] * 10, *[18.0] * 20],
        accuracy=[0.6] * 10 + [0.9] * 10 + [0.7] * 10 + [1.0] * 10,
        stage=[0] * 15 + [1] * 5 + [2] * 3 + [3] * 17,
    )
    assert study.figures(result) == pytest.approx(
        {
            "length_start": 20.0,
            "length_peak": 40.0,
            "length_end": 18.0,
            "accuracy_start": 0.6,
            "accuracy_end": 1.0,
            "switch_step": 21,
            "accuracy_lowest_after_switch": 0.7,
        }
    )
    for stage in ([], [3] * 40):
        assert study.figures({**result, "stage": stage})["accuracy_lowest_after_switch"] is None


def test_the_verdict_goes_seed_by_seed(study):
    care = [made_result(seed=s, length=[20.0] * 5 + [peak] * 15 + [18.0] * 10) for s, peak in ((0, 40.0), (1, 25.0))]
    long = [made_result("static_long", s, length=[20.0] * 20 + [end] * 10) for s, end in ((0, 40.0), (1, 20.0))]
    summary = study.summarise([*care, *long])
    assert summary["rises"] == {0: True, 1: False}
    assert summary["ends_short"] == {0: True, 1: False}
    assert summary["arms"]["static_long"]["care_minus_this"] == {"accuracy": 0.0, "interval": [0.0, 0.0]}
    assert json.loads(json.dumps(summary, allow_nan=False))["arms"]["care"]["length_end"] == [18.0, 18.0]


def test_intervals_are_students(study):
    # Mean 0.02, deviation 0.01, t(0.975, 2) = 4.3027: 0.02 +- 4.3027 * 0.01 / sqrt(3).
    assert study.interval([0.01, 0.02, 0.03]) == (pytest.approx(0.02), [-0.0048, 0.0448])
    assert study.interval([0.01]) == (0.01, None)


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_the_quick_form_trains_and_is_not_trained_again(tmp_path):
    def run():
        command = [sys.executable, str(SCRIPT), "--quick", "--out-dir", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    first = run()
    assert first["arms"]["care"]["seeds"] == [0] and 8 < first["arms"]["care"]["length_start"][0] <= 44
    kept = tmp_path / "quick" / "care_seed0" / "result.json"
    stamp = kept.stat().st_mtime_ns
    result = json.loads(kept.read_text())
    assert len(result["length"]) == len(result["competence"]) == 2
    assert (tmp_path / "quick" / "inverted_u.png").stat().st_size > 10_000
    assert run() == first and kept.stat().st_mtime_ns == stamp
