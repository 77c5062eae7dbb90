"""The testing tools against verl itself: rows as verl writes them, an update as verl runs it."""

from __future__ import annotations

import pytest
import torch

from verl_care.testing import (
    MockWorkerGroup,
    add_padding,
    build_config,
    build_trainer,
    make_group,
    put_groups,
    put_rows,
    read_rows,
    run_update,
)

OVERRIDES = [
    "data.train_batch_size=2",
    "actor_rollout_ref.actor.ppo_mini_batch_size=2",
    "actor_rollout_ref.rollout.n=4",
]


@pytest.fixture(scope="module")
def config():
    return build_config(OVERRIDES)


def test_an_update_of_stock_sync_gives_grpo_advantages(partition, config):
    rows = make_group("a", accuracy=[1, 0, 0, 0], length=[5, 9, 7, 12])
    rows += make_group("b", accuracy=[1, 1, 0, 0], length=[6, 6, 8, 20], modality="text", index=1)
    trainer = build_trainer("sync", config)
    update = run_update(trainer, put_rows(rows, partition))
    out = read_rows(update.batch, "advantages", "uid", "rm_scores")
    # Scores 2, 1, 1, 1: mean 1.25, sample std 0.5. Scores 2, 2, 1, 1: mean 1.5, sample std 0.5774.
    for key, expected in {"a_0_0": 1.5, "a_1_0": -0.5, "b_0_0": 0.8660, "b_3_0": -0.8660}.items():
        advantage = out[key]["advantages"]
        assert torch.allclose(advantage, torch.full_like(advantage, expected), atol=1e-4), key
    assert update.metrics["critic/score/mean"] == pytest.approx(1.375)
    assert trainer.actor_rollout_wg.trained[0].keys() == set(update.batch.keys)
