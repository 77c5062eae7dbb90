"""The temporal contrast between trainer and agent loop: who is asked for shuffled responses, and what they cost."""

import functools
import logging
from types import SimpleNamespace

import numpy as np
import pytest
from torch.utils.data import DataLoader
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.rl_dataset import collate_fn

from verl_care.data.shuffle import SHUFFLED_RESPONSES_COLUMN
from verl_care.testing.rows import make_group, put_rows, read_rows
from verl_care.testing.trainer import build_config, build_trainer, run_update

pytestmark = pytest.mark.timeout(120)


@functools.cache
def compose(overrides, manager, mode):
    return build_config(
        [
            "+care=base",
            f"trainer.v1.trainer_mode={mode}",
            f"reward.reward_manager.name={manager}",
            "actor_rollout_ref.rollout.agent.default_agent_loop=care_agent",
            "actor_rollout_ref.rollout.n=4",
            "data.train_batch_size=4",
            *overrides,
        ]
    )


def make_trainer(tmp_path, *overrides, manager="t_grpo", mode="care_sync"):
    config = compose(overrides, manager, mode).copy()
    config.trainer.default_local_dir = str(tmp_path)
    return build_trainer(mode, config)


def next_batch(trainer):
    """A batch through verl's own `_next_train_batch`, from a loader of four rows."""
    rows = [{"index": i, "raw_prompt": [{"role": "user", "content": "?"}]} for i in range(4)]
    trainer.train_dataloader = [collate_fn(rows)]
    trainer.train_dataloader_it = None
    return trainer._next_train_batch()


def shuffled_of(batch):
    """What `AgentLoopWorkerTQ.generate_sequences` takes out of the batch for each row."""
    if SHUFFLED_RESPONSES_COLUMN not in batch.keys():
        return None
    return [batch.get(SHUFFLED_RESPONSES_COLUMN)[i].data for i in range(len(batch))]


@pytest.mark.parametrize(
    ("overrides", "manager", "expected"),
    [
        ([], "t_grpo", [2] * 4),
        ([], "care", [2] * 4),
        (["actor_rollout_ref.rollout.n=8"], "care", [4] * 4),
        (["care.contrast.responses=1"], "care", [1] * 4),
        (["care.contrast.responses=0"], "care", None),
        (["care=no_temporal"], "care", None),
        # Nobody would read them: no cost.
        ([], "naive", None),
    ],
)
def test_training_rows_say_how_many_sessions_shuffle(transfer_queue, tmp_path, overrides, manager, expected):
    trainer = make_trainer(tmp_path, *overrides, manager=manager)
    batch = next_batch(trainer)
    assert shuffled_of(batch) == expected
    assert list(batch["index"]) == [0, 1, 2, 3]


def test_prompts_that_an_asynchronous_trainer_saves_keep_the_number(transfer_queue, partition, tmp_path):
    batch = next_batch(make_trainer(tmp_path, mode="care_colocate_async"))
    keep = [key for key in batch.keys() if not isinstance(batch.get(key), tu.NonTensorData)]
    assert SHUFFLED_RESPONSES_COLUMN in keep
    keys = [str(uid) for uid in batch["uid"]]
    transfer_queue.kv_batch_put(
        keys=keys, partition_id=partition, fields=batch.select(*keep), tags=[{"is_prompt": True}] * len(keys)
    )
    assert shuffled_of(transfer_queue.kv_batch_get(keys=keys, partition_id=partition)) == [2] * 4


def test_batches_of_a_validation_do_not_ask(transfer_queue, tmp_path):
    trainer = make_trainer(tmp_path)
    seen = []

    class Stop(Exception):
        pass

    def generate_sequences(batch):
        seen.append(batch)
        raise Stop

    trainer.agent_loop_manager = SimpleNamespace(generate_sequences=generate_sequences)
    rows = [{"index": i, "data_source": "toy", "raw_prompt": [{"role": "user", "content": "?"}]} for i in range(2)]
    trainer.val_dataloader = DataLoader(rows, batch_size=len(rows), collate_fn=collate_fn)
    with pytest.raises(Stop):
        trainer._validate()
    transfer_queue.kv_clear(keys=[str(uid) for uid in seen[0]["uid"]], partition_id="val")
    assert tu.get_non_tensor_data(seen[0], "validate", None) is True and shuffled_of(seen[0]) is None


def test_more_shuffled_responses_than_sessions_end_the_start(transfer_queue, tmp_path):
    with pytest.raises(ValueError, match="care.contrast.responses"):
        make_trainer(tmp_path, "care.contrast.responses=5")


@pytest.mark.parametrize(
    ("loop", "overrides", "warned"),
    [
        ("single_turn_agent", [], True),
        ("care_agent", [], False),
        ("single_turn_agent", ["care.contrast.enabled=false"], False),
    ],
)
def test_a_contrast_that_nothing_feeds_is_a_warning(transfer_queue, tmp_path, caplog, loop, overrides, warned):
    with caplog.at_level(logging.WARNING, logger="verl_care.workers.trainer"):
        make_trainer(tmp_path, f"actor_rollout_ref.rollout.agent.default_agent_loop={loop}", *overrides)
    assert any("default_agent_loop=care_agent" in record.message for record in caplog.records) == warned


def info(acc, shuffled):
    return {"score": acc + 1.0, "acc": acc, "format": 1.0, "unparsed": 0.0, "acc_shuffled": shuffled}


def cost(text=None, tokens=0, seconds=0.0, delay=0.0):
    names = ("care_shuffled", "care_shuffled_tokens", "care_shuffled_seconds", "care_shuffled_delay")
    return dict(zip(names, (text, tokens, seconds, delay), strict=True))


def test_costs_and_contrast_reach_the_metrics_through_transfer_queue(partition, tmp_path):
    video = make_group(
        "a",
        accuracy=[1, 1, 0, 1],
        length=[10, 20, 30, 40],
        reward_extra_info=[info(1.0, 0.0), info(1.0, 1.0), info(0.0, None), info(1.0, None)],
        extra_fields=[cost("<answer>B</answer>", 30, 2.0, 0.5), cost("x", 20, 1.0, 0.0), cost(), cost()],
    )
    text = make_group("b", accuracy=[1, 0, 0, 1], length=25, modality="text", index=1, extra_fields=[cost()] * 4)
    batch = put_rows(video + text, partition)
    kept = read_rows(batch, "extra_fields")
    assert kept["a_0_0"]["extra_fields"]["care_shuffled"] == "<answer>B</answer>"
    assert kept["b_0_0"]["extra_fields"]["care_shuffled"] is None
    assert kept["b_0_0"]["extra_fields"].keys() == kept["a_0_0"]["extra_fields"].keys()

    metrics = run_update(make_trainer(tmp_path), batch).metrics
    assert metrics["care/temporal/tokens_total"] == 50
    assert metrics["care/temporal/token_share"] == pytest.approx(50 / 250)
    assert metrics["care/temporal/seconds"] == pytest.approx(1.5)
    assert metrics["care/temporal/delay_seconds"] == pytest.approx(0.25)
    # Group a: 0.75 against 0.5; the text has no part in it.
    assert metrics["care/temporal/acc_ordered"] == pytest.approx(0.75)
    assert metrics["care/temporal/acc_shuffled"] == pytest.approx(0.5)
    assert metrics["care/temporal/pass_share"] == 1.0 and metrics["care/temporal/vacuous_share"] == 0.0
    # T-GRPO alone: nothing but 0.3 for the three right answers to the video; means over eight responses.
    assert metrics["critic/rewards/mean"] - metrics["critic/score/mean"] == pytest.approx(0.3 * 3 / 8)


def test_a_batch_without_shuffled_responses_has_no_temporal_metrics(partition, tmp_path):
    batch = put_rows(make_group("a", accuracy=[1, 0, 0, 1], modality="image", extra_fields=[cost()] * 4), partition)
    metrics = run_update(make_trainer(tmp_path), batch).metrics
    assert not [key for key in metrics if key.startswith("care/temporal/")]
    assert np.isclose(metrics["critic/rewards/mean"], metrics["critic/score/mean"])
