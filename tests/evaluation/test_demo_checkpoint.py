"""`verl-care eval` on the demo's own checkpoint, over held-out clips in the shape of four published sets."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path
from statistics import fmean

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from verl_care.cli import app
from verl_care.data import demo
from verl_care.data.records import strip_none, write_rows

SETS = {
    "video_mme": ("colour", {"duration_class": "short", "task_type": "Attribute Perception"}),
    "vsi_bench": ("shade", {"question_type": "object_counting"}),
    "video_mmmu": ("caption", {"track": "Adaptation", "question_type": "open"}),
    "video_mmmu_question_only": ("caption", {"track": "Adaptation", "question_type": "open"}),
}
"""Benchmark -> kind of the demo's questions that stands for its own, and fields that it groups by."""


def shaped(rows: list[dict], name: str) -> list[dict]:
    """Held-out questions of one kind as records of a benchmark; those before a lecture see the next one's clip."""
    kind, info = SETS[name]
    asked = [row for row in rows if row["extra_info"]["kind"] == kind]
    clips = [[strip_none(video) for video in row["videos"]] for row in asked]
    if name.endswith("question_only"):
        clips = clips[1:] + clips[:1]
    return [
        {
            **row,
            "data_source": name,
            "videos": videos,
            "extra_info": {**strip_none(row["extra_info"]), **info, "index": index, "id": f"Adaptation/{index}"},
        }
        for index, (row, videos) in enumerate(zip(asked, clips, strict=True))
    ]


@pytest.fixture(scope="module")
def run(demo_assets, tmp_path_factory) -> tuple[dict, dict[str, list[tuple[str, str]]]]:
    """Results, and pairs of answer and gold by benchmark, in the order of the files."""
    folder: Path = tmp_path_factory.mktemp("demo_eval")
    table = pq.read_table(demo_assets / "val.parquet").to_pylist()
    rows = [{**row, "images": []} for row in table if row["data_source"] == demo.DATA_SOURCE]
    golds = {}
    for name in SETS:
        records = shaped(rows, name)
        write_rows(records, folder / name / "test.parquet")
        golds[name] = {f"{name}/{r['extra_info']['index']}": r["reward_model"]["ground_truth"] for r in records}
    call = ["eval", str(demo_assets / "model"), *(str(folder / name) for name in SETS), "--out", str(folder / "run")]
    done = CliRunner().invoke(app, [*call, "--max-tokens", "64", "--blind", "--json"])
    assert done.exit_code == 0, done.output
    items = [item for item in pq.read_table(folder / "run" / "items.parquet").to_pylist() if not item["blind"]]
    answers = {
        name: [
            (found[1] if (found := re.search("<answer>(.*)</answer>", item["text"])) else "", golds[name][item["key"]])
            for item in items
            if item["benchmark"] == name
        ]
        for name in SETS
    }
    return json.loads((folder / "run" / "results.json").read_text()), answers


def headline(run, name: str, reading: str = "strict") -> float:
    return run[0]["benchmarks"][name]["headline"][reading]["mean"]


def test_every_question_is_asked_and_none_fails(run):
    results, answers = run
    assert results["failed"] == 0
    for name in SETS:
        assert results["benchmarks"][name]["items"] == len(answers[name]) >= 20


def test_choices_are_scored_by_their_letters(run):
    pairs = run[1]["video_mme"]
    assert headline(run, "video_mme") == pytest.approx(fmean(answer.strip() == gold for answer, gold in pairs))
    # The warm-started policy has learned to see colours, and sees none without the clip.
    assert headline(run, "video_mme") > run[0]["benchmarks"]["video_mme"]["blind"]["strict"]["mean"] + 0.2


def test_numbers_are_scored_by_relative_accuracy(run):
    """Thresholds .50, .55, … .95: |answer - gold| / gold <= 1 - threshold, in exact fractions."""

    def accuracy(answer: str, gold: str) -> float:
        if not re.fullmatch(r"\d+", answer.strip()):
            return 0.0
        error = abs(Fraction(answer.strip()) - Fraction(gold)) / Fraction(gold)
        return sum(error <= 1 - Fraction(percent, 100) for percent in range(50, 100, 5)) / 10

    expected = fmean(accuracy(*pair) for pair in run[1]["vsi_bench"])
    assert headline(run, "vsi_bench", "official") == pytest.approx(expected)


def test_knowledge_gained_is_that_of_the_right_clips(run):
    right = {
        name: [answer.split() == gold.split() for answer, gold in run[1][name]]
        for name in ("video_mmmu", "video_mmmu_question_only")
    }
    after, before = (fmean(values) for values in right.values())
    assert (headline(run, "video_mmmu"), headline(run, "video_mmmu_question_only")) == pytest.approx((after, before))
    found = run[0]["benchmarks"]["video_mmmu"]["figures"]["strict"]["Δknowledge"]
    assert found == pytest.approx((after - before) / (1 - before)) and found > 0.2
