"""The testing tools against verl itself: an update as verl runs it."""

from __future__ import annotations

import pytest
import torch

from verl_care.testing import (
    MockWorkerGroup,
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


def first_advantage(update):
    return {key: float(row["advantages"][0]) for key, row in read_rows(update.batch, "advantages").items()}


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


def test_a_failed_session_shortens_its_group_and_padding_fills_the_batch(partition, config):
    rows = make_group("a", accuracy=[1, None, 0, 0])
    rows += make_group("b", accuracy=[1, 1, 0, 0], modality="image", index=1)
    update = run_update(build_trainer("sync", config), put_rows(rows, partition))
    assert len(update.keys()) == 7 and len(update.keys(padding=True)) == 1
    # Three scores 2, 1, 1: mean 4/3, sample std 0.5774.
    assert first_advantage(update)["a_0_0"] == pytest.approx(1.1547, abs=1e-4)
    assert update.metrics["critic/score/mean"] == pytest.approx(10 / 7)


def test_outputs_of_one_session_share_the_advantage_of_its_final_one(partition, config):
    rows = make_group("a", accuracy=[1, 0, 0, 0], length=[[4, 6, 8], 5, [3, 9], 7])
    assert [row.key for row in rows if row.key.startswith("a_0")] == ["a_0_0", "a_0_1", "a_0_2"]
    update = run_update(build_trainer("sync", config), put_rows(rows, partition))
    advantage = first_advantage(update)
    assert advantage["a_0_0"] == advantage["a_0_1"] == advantage["a_0_2"] == pytest.approx(1.5, abs=1e-4)
    assert advantage["a_2_0"] == advantage["a_2_1"] == pytest.approx(-0.5, abs=1e-4)


def test_the_replay_buffer_samples_groups_finished_and_failed(train_partition, config):
    groups = [make_group("a", accuracy=[1, 0, 0, 0]), make_group("b", accuracy=[1, None, 1, 0], index=1)]
    put_groups(groups, train_partition, n=4)
    update = run_update(build_trainer("sync", config), 2)
    assert set(update.keys()) == {row.key for rows in groups for row in rows}


def test_reference_log_probs_come_from_the_first_weights(partition, config):
    config = config.copy()
    config.actor_rollout_ref.actor.use_kl_loss = True
    group = MockWorkerGroup()
    group.version = 3
    update = run_update(
        build_trainer("sync", config, worker_group=group), put_rows(make_group("a", accuracy=[1] * 8), partition)
    )
    row = read_rows(update.batch, "ref_log_prob", "old_log_probs")["a_0_0"]
    assert torch.allclose(row["ref_log_prob"] - row["old_log_probs"], torch.tensor(0.03), atol=1e-6)


def test_separate_async_keeps_the_old_policy_over_its_updates(partition):
    config = build_config(
        [
            *OVERRIDES,
            "data.train_batch_size=4",
            "trainer.v1.trainer_mode=separate_async",
            "trainer.v1.separate_async.parameter_sync_step=2",
            "actor_rollout_ref.rollout.nnodes=1",
            "actor_rollout_ref.rollout.checkpoint_engine.backend=nccl",
        ]
    )
    trainer = build_trainer("separate_async", config)
    for trainer.local_trigger_step in (0, 1):
        rows = make_group("a", accuracy=[1, 0, 0, 0]) + make_group("b", accuracy=[1, 0, 0, 0], index=1)
        update = run_update(trainer, put_rows(rows, partition))
        row = read_rows(update.batch, "old_log_probs", "input_ids", "response_mask")["a_0_0"]
        ids = row["input_ids"][-len(row["response_mask"]) - 1 : -1]
        # Weights of version 0, although the second update finds version 1.
        assert torch.allclose(row["old_log_probs"], -0.1 - 0.05 * (ids % 7).float())
    assert trainer.actor_rollout_wg.version == 2


def test_unknown_sizes_are_refused_by_the_worker_group(partition):
    batch = put_rows(make_group("a", accuracy=[1, 0, 1]), partition)
    with pytest.raises(ValueError, match="3 rows do not divide among 2"):
        MockWorkerGroup(dp_size=2).compute_log_prob(batch)


def test_the_actor_does_not_see_a_field_put_behind_the_batchs_back(partition, transfer_queue):
    from tensordict import TensorDict

    batch = put_rows(make_group("a", accuracy=[1, 0]), partition)
    group = MockWorkerGroup()
    batch = group.compute_log_prob(batch)
    transfer_queue.kv_batch_put(batch.keys, partition, fields=TensorDict({"late": torch.ones(2, 1)}, batch_size=2))
    group.update_actor(batch)
    seen = set(group.trained[0]["a_0_0"])
    assert "late" not in seen and {"log_probs", "entropy", "response_mask"} <= seen
