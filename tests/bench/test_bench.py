"""The harness: one JSON line a benchmark, with both arms and the machine; counts that do not depend on the machine."""

from __future__ import annotations

import json

import pytest

from verl_care import bench
from verl_care.bench import bench_reward, bench_shaping, bench_video
from verl_care.bench.clock import TreeClock, summary, take_turns


def test_a_benchmark_prints_one_line_with_both_arms_and_the_machine(capsys):
    assert bench.run("shaping", rollouts=1000, repeats=2) == 0
    [line] = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert result["benchmark"] == "shaping"
    assert result["ours"]["runs"] == result["sort"]["runs"] == 2
    assert result["ratio"] == pytest.approx(result["ours"]["median"] / result["sort"]["median"], rel=0.05)
    assert result["machine"]["cores"] >= 1 and result["machine"]["verl"] == "0.9.1"


def test_an_error_is_one_line_and_status_1(capsys, monkeypatch):
    def fail(**options):
        raise RuntimeError("no clip")

    monkeypatch.setattr(bench_shaping, "measure", fail)
    assert bench.run("shaping") == 1
    assert capsys.readouterr().err == "error: bench shaping: no clip\n"


def test_shaping_makes_no_python_objects_for_rollouts():
    """A loop over 100,000 rollouts would make at least a float of 24 bytes for each."""
    assert bench_shaping.measure(rollouts=100_000, repeats=1)["python_bytes"] < 100_000


def test_both_managers_score_the_same():
    result = bench_reward.measure(rollouts=8, repeats=1)
    assert set(result["longest_block_ms"]) == {"care", "naive"}


def test_arms_take_turns_after_a_warm_up():
    order = []
    found = take_turns({name: lambda name=name: order.append(name) or len(order) for name in "ab"}, 2)
    assert order == list("ababab") and found == {"a": [3, 5], "b": [4, 6]}


def test_a_clock_counts_processes_that_this_one_has_started():
    import subprocess
    import sys

    clock = TreeClock()
    subprocess.run([sys.executable, "-c", "sum(range(3_000_000))"], check=True)
    assert clock.seconds() > 0.02
    assert summary([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "runs": 3}


@pytest.mark.timeout(200)
def test_video_counts_and_bytes(transfer_queue, tmp_path, monkeypatch):
    """A small clip: what is decoded, processed and stored does not depend on its size."""
    from contextlib import nullcontext

    from verl_care.testing import clips

    monkeypatch.setattr(bench_video, "_cluster", nullcontext)
    monkeypatch.setattr(bench_video, "FRAMES", 4)
    clip = clips.write_clip(tmp_path / "clip.mp4", seconds=2)
    result = bench_video._measure_worker(tmp_path, clip, 3, 1)
    ours, stock = result["ours"], result["stock"]
    assert (ours["decodes"], ours["processor_passes"]) == (1, 1)
    # Three passes a response: prompt tokens, score, row.
    assert (stock["decodes"], stock["processor_passes"]) == (3, 9)
    # Stock verl keeps two copies in every row, of which one is SGLang's.
    assert result["pixel_bytes_ratio"] == pytest.approx(6, rel=0.01)
