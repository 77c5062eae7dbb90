"""SIRI, annealed decoding, FaVChat's lifecycles and BAPO between verl's loader, agent loop, rewards and workers."""

from __future__ import annotations

import asyncio
import functools
import itertools
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.utils.dataset.rl_dataset import collate_fn

from verl_care.shaping.annealing import ANNEALING_COLUMN
from verl_care.shaping.lifecycle import Lifecycle, PromptLife
from verl_care.shaping.siri import MAX_TOKENS_COLUMN
from verl_care.testing import build_config, build_trainer, make_group, put_rows, run_update
from verl_care.workers.agent_loop import CareAgentLoop
from verl_care.workers.state import StateError

pytestmark = pytest.mark.timeout(120)


@functools.cache
def compose(overrides):
    return build_config(
        [
            "+care=base",
            "trainer.v1.trainer_mode=care_sync",
            "reward.reward_manager.name=naive",
            "data.train_batch_size=4",
            "actor_rollout_ref.actor.ppo_mini_batch_size=4",
            "actor_rollout_ref.rollout.n=2",
            "data.max_response_length=100",
            *overrides,
        ]
    )


def make_trainer(tmp_path, *overrides, total_training_steps=20):
    config = compose(overrides).copy()
    config.trainer.default_local_dir = str(tmp_path)
    return build_trainer("care_sync", config, total_training_steps=total_training_steps)


class Loader(list):
    """Batches of four rows of a data set that begins anew when it is through."""

    def __init__(self, num_rows):
        rows = [
            {"index": i, "data_source": "toy", "raw_prompt": [{"role": "user", "content": "?"}]}
            for i in range(num_rows)
        ]
        super().__init__(collate_fn(rows[i : i + 4]) for i in range(0, num_rows, 4))

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def load(trainer, num_rows=8):
    trainer.train_dataloader = Loader(num_rows)
    trainer.train_dataloader_it = None
    return trainer


def drawn(trainer):
    return [int(index) for index in trainer._next_train_batch()["index"]]


@pytest.mark.parametrize(("step", "budget"), [(1, 100), (6, 50), (11, 100)])
def test_training_rows_carry_the_budget_of_their_step(transfer_queue, tmp_path, step, budget):
    trainer = load(make_trainer(tmp_path, "care.siri.enabled=true", "care.siri.period=10"))
    trainer.global_steps = step
    batch = trainer._next_train_batch()
    assert [batch.get(MAX_TOKENS_COLUMN)[i].data for i in range(4)] == [budget] * 4


def test_without_siri_rows_have_no_budget(transfer_queue, tmp_path):
    assert MAX_TOKENS_COLUMN not in load(make_trainer(tmp_path))._next_train_batch().keys()


@pytest.fixture
def sampled(monkeypatch):
    """A function: the sampling parameters with which the agent loop has verl sample for a row."""
    seen = []

    async def run(self, sampling_params, priority=0, **kwargs):
        seen.append(sampling_params)
        return AgentLoopOutput(prompt_ids=[1], response_ids=[2], response_mask=[1], num_turns=2, metrics={})

    monkeypatch.setattr(SingleTurnAgentLoop, "run", run)
    loop = object.__new__(CareAgentLoop)
    loop.config = OmegaConf.create()
    loop.rollout_config = OmegaConf.create()
    loop.server_manager = None

    def sample(params, **columns):
        asyncio.run(loop.run(params, data_source="toy", index=0, session_id=0, global_steps=3, **columns))
        return seen[-1]

    return sample


@pytest.mark.parametrize(("column", "expected"), [({MAX_TOKENS_COLUMN: 37}, 37), ({}, None)])
def test_the_agent_loop_samples_no_further_than_the_budget(sampled, column, expected):
    shared = {"temperature": 1.0}
    assert sampled(shared, **column).get("max_new_tokens") == expected and "max_new_tokens" not in shared


def test_metrics_say_how_many_responses_the_budget_cut(partition, tmp_path):
    trainer = make_trainer(tmp_path, "care.siri.enabled=true", "care.siri.period=10")
    trainer.global_steps = 6
    rows = [
        *make_group("a", accuracy=[1, 0], length=[50, 49], global_steps=6),
        # Drawn when 100 tokens were allowed.
        *make_group("b", accuracy=[1, 0], length=[60, 100], index=1, global_steps=1),
    ]
    metrics = run_update(trainer, put_rows(rows, partition)).metrics
    assert metrics["care/siri/budget_tokens"] == 50 and metrics["care/siri/cut_share"] == 0.5


FAVCHAT = ["care.favchat.enabled=true"]


def test_removed_prompts_are_passed_over_and_batches_stay_whole(transfer_queue, tmp_path):
    trainer = load(make_trainer(tmp_path, *FAVCHAT))
    trainer.lifecycle = Lifecycle(
        {"toy/1": PromptLife(0.0, 1), "toy/2": PromptLife(0.0, 1), "toy/6": PromptLife(1.0, 1)}
    )
    batches = [drawn(trainer) for _ in range(6)]
    assert all(len(batch) == 4 for batch in batches)
    # Passes over the data: 0 3 4 5 7 | 0 3 4 5 6 7 | 0 3 4 5 7 | 0 1 2 3 4 5 6 7: nothing is lost between batches.
    expected = [0, 3, 4, 5, 7, 0, 3, 4, 5, 6, 7, 0, 3, 4, 5, 7, 0, 1, 2, 3, 4, 5, 6, 7]
    assert list(itertools.chain.from_iterable(batches)) == expected


def test_a_data_set_of_removed_prompts_ends_in_a_batch_all_the_same(transfer_queue, tmp_path):
    trainer = load(make_trainer(tmp_path, *FAVCHAT))
    trainer.lifecycle = Lifecycle({f"toy/{i}": PromptLife(0.0, 1) for i in range(8)})
    assert drawn(trainer) == [0, 1, 2, 3]


def test_without_favchat_everything_comes_in_turn(transfer_queue, tmp_path):
    trainer = load(make_trainer(tmp_path))
    trainer.lifecycle = Lifecycle({"toy/1": PromptLife(0.0, 1)})
    assert [drawn(trainer), drawn(trainer), drawn(trainer)] == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]]


def run_groups(trainer, partition):
    rows = [
        *make_group("a", accuracy=[1, 0], length=10, data_source="toy", index=0),
        *make_group("b", accuracy=[1, 1], length=10, data_source="toy", index=1),
    ]
    return run_update(trainer, put_rows(rows, partition)).metrics


def test_utilities_come_from_the_rewards_and_survive_a_resume(partition, tmp_path):
    trainer = make_trainer(tmp_path, *FAVCHAT)
    metrics = run_groups(trainer, partition)
    assert trainer.lifecycle.prompts == {"toy/0": PromptLife(1.0, 1), "toy/1": PromptLife(0.0, 1)}
    assert metrics["care/favchat/utility"] == 0.5
    assert metrics["care/favchat/cool_share"] == metrics["care/favchat/remove_share"] == 0.5
    trainer._save_checkpoint()

    resumed = make_trainer(tmp_path, *FAVCHAT, "trainer.resume_mode=auto")
    resumed._load_checkpoint()
    assert resumed.lifecycle == trainer.lifecycle

    (tmp_path / "global_step_1" / "care_lifecycle.json").unlink()
    with pytest.raises(StateError, match="care_lifecycle.json"):
        make_trainer(tmp_path, *FAVCHAT, "trainer.resume_mode=auto")._load_checkpoint()
    fresh = make_trainer(tmp_path, *FAVCHAT, "trainer.resume_mode=auto", "care.on_missing_state=fresh")
    fresh._load_checkpoint()
    assert fresh.lifecycle == Lifecycle()


def workers_of(tmp_path, *overrides, worker=None):
    """verl's roles with Ray actor classes, after the trainer has put in its own."""
    import ray
    from verl.workers.engine_workers import ActorRolloutRefWorker

    from verl_care.workers.actor_workers import install_workers

    trainer = make_trainer(tmp_path, *overrides)
    mapping = {"actor": ray.remote(worker or ActorRolloutRefWorker), "critic": ray.remote(SimpleNamespace)}
    before = dict(mapping)
    install_workers(trainer.care_config, trainer.config, mapping)
    return {role: None if mapping[role] is before[role] else cls(mapping[role]) for role in mapping}, trainer.config


def cls(remote):
    return remote.__ray_metadata__.modified_class


BAPO = ["care.bapo.enabled=true", "actor_rollout_ref.actor.ppo_epochs=2"]


@pytest.mark.parametrize(
    ("overrides", "replaced"),
    [
        ([], False),
        (["care.token_selection=d3s"], False),
        (["care.token_selection=video_ktr", "care.video_ktr.signals=[entropy]"], False),
        (["care.token_selection=video_ktr"], True),
        (BAPO, True),
    ],
)
def test_verls_worker_is_replaced_only_where_something_runs_in_it(transfer_queue, tmp_path, overrides, replaced):
    from verl_care.workers.actor_workers import CareActorWorker

    workers, _ = workers_of(tmp_path, *overrides)
    assert workers["critic"] is None
    assert (workers["actor"] is not None and issubclass(workers["actor"], CareActorWorker)) == replaced


def test_separate_async_keeps_its_workers_abilities(transfer_queue, tmp_path):
    from verl.experimental.separation.engine_workers import DetachActorWorker

    workers, _ = workers_of(tmp_path, *BAPO, worker=DetachActorWorker)
    assert issubclass(workers["actor"], DetachActorWorker)
    assert hasattr(workers["actor"], "compute_counterfactual_log_prob")


def test_bapos_constants_reach_the_workers(transfer_queue, tmp_path):
    from verl_care.config import BapoConfig

    _, config = workers_of(tmp_path, *BAPO, "care.bapo.target_share=0.5")
    assert BapoConfig(**config.actor_rollout_ref.care_bapo) == BapoConfig(enabled=True, target_share=0.5)


def test_bapo_refuses_a_loss_that_does_not_read_its_bounds(transfer_queue, tmp_path):
    with pytest.raises(ValueError, match="loss_mode=gspo"):
        workers_of(tmp_path, *BAPO, "actor_rollout_ref.actor.policy_loss.loss_mode=gspo")


@pytest.mark.parametrize(("epochs", "warned"), [(1, True), (2, False)])
def test_bapo_without_a_second_update_is_a_warning(transfer_queue, tmp_path, caplog, epochs, warned):
    with caplog.at_level("WARNING", logger="verl_care.workers.actor_workers"):
        workers_of(tmp_path, BAPO[0], f"actor_rollout_ref.actor.ppo_epochs={epochs}")
    assert ("no effect" in caplog.text) == warned


ANNEALING = ["care.annealing.enabled=true", "actor_rollout_ref.rollout.agent.default_agent_loop=care_agent"]
RAW = "actor_rollout_ref.rollout.logprobs_mode=raw_logprobs"


def test_a_schedule_goes_from_the_trainer_through_the_row_to_the_request(transfer_queue, tmp_path, sampled):
    trainer = load(make_trainer(tmp_path, *ANNEALING, RAW))
    trainer.global_steps = 3
    column = trainer._next_train_batch().get(ANNEALING_COLUMN)[0]
    column = getattr(column, "data", column)
    assert column == {"tau_max": 1.2, "tau_min": 0.1, "decay_tokens": 1200.0, "warm_up": 10.0}
    assert sampled({"temperature": 1.0}, **{ANNEALING_COLUMN: column}) == {
        "temperature": 1.0,
        "extra_args": {ANNEALING_COLUMN: column},
    }
    assert sampled({"temperature": 1.0}) == {"temperature": 1.0}


def test_vllm_gets_the_logits_processor_beside_others(transfer_queue, tmp_path):
    other = "+actor_rollout_ref.rollout.engine_kwargs.vllm.logits_processors=[other:Processor]"
    trainer = make_trainer(tmp_path, *ANNEALING, RAW, other)
    assert list(trainer.config.actor_rollout_ref.rollout.engine_kwargs.vllm.logits_processors) == [
        "other:Processor",
        "verl_care.workers.vllm_annealing:AnnealedTemperature",
    ]
    assert "logits_processors" not in make_trainer(tmp_path).config.actor_rollout_ref.rollout.engine_kwargs.vllm


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        ([ANNEALING[0]], "default_agent_loop=care_agent"),
        ([*ANNEALING, RAW, "actor_rollout_ref.rollout.name=sglang"], "expected vllm or hf"),
        ([*ANNEALING, "actor_rollout_ref.rollout.logprobs_mode=processed_logprobs"], "raw_logprobs"),
    ],
)
def test_what_does_not_go_with_annealing_ends_the_start(transfer_queue, tmp_path, overrides, match):
    with pytest.raises(ValueError, match=match):
        make_trainer(tmp_path, *overrides)
