"""A clip that breaks after the records were checked: its own prompt fails, is counted and named, and no other does."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

PROMPTS = 16


@pytest.fixture(scope="module")
def broken(main_ppo, assets, tmp_path_factory):
    """Two steps over the same 16 prompts, the clip of one of them cut in half."""
    folder: Path = tmp_path_factory.mktemp("broken")
    rows = pq.read_table(assets.folder / "train.parquet").to_pylist()
    number = next(number for number, row in enumerate(rows) if row["videos"])
    clip = folder / "cut.mp4"
    shutil.copy(rows[number]["videos"][0]["video"], clip)
    os.truncate(clip, clip.stat().st_size // 2)
    rows[number]["videos"][0]["video"] = str(clip)
    pq.write_table(pa.Table.from_pylist(rows[number : number + PROMPTS]), folder / "train.parquet")
    run = main_ppo(folder, f"data.train_files={folder}/train.parquet", "trainer.total_training_steps=2")
    kept = [f"{row['data_source']}/{row['extra_info']['index']}" for row in rows[number + 1 : number + PROMPTS]]
    return run, clip, sorted(kept)


def test_all_other_prompts_are_answered_and_trained_on(broken):
    run, _, kept = broken
    assert sorted(run.steps) == [1, 2]
    for step, metrics in run.steps.items():
        assert sorted({row["prompt_key"] for row in run.rollouts(step)}) == kept
        assert len(run.rollouts(step)) == 4 * len(kept)
        assert metrics["actor/grad_norm"] > 0 and metrics["care/reward_errors"] == 0


def test_the_broken_one_is_counted_and_named(broken):
    run, clip, _ = broken
    for metrics in run.steps.values():
        assert metrics["care/rollouts/missing"] == pytest.approx(1 / PROMPTS)
        # Whole groups are gone, none is short of a response.
        assert metrics["care/groups/short"] == 0
    assert f"{clip}: " in run.log
