"""What token selection, BAPO and prompt lifecycles rely on in verl's workers and trainers."""

import inspect

import pytest
import torch
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync
from verl.workers.engine.fsdp import transformer_impl
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("_compute_old_log_prob", ["self", "batch", "metrics"]),
        ("_compute_advantage", ["self", "batch", "metrics"]),
        ("_update_actor", ["self", "batch", "metrics"]),
        ("_init_resource_pool_mgr", ["self"]),
        ("_fetch_one_gen_batch", ["self"]),
        ("_next_train_batch", ["self", "num_prompts"]),
    ],
)
def test_trainer_methods_that_are_overridden(method, parameters):
    assert list(inspect.signature(getattr(PPOTrainer, method)).parameters) == parameters


def test_separate_async_loads_the_old_weights_around_the_base_method():
    source = inspect.getsource(PPOTrainerSeparateAsync._compute_old_log_prob)
    restore, inner, back = (
        source.index(text)
        for text in ("restore_model_from_cpu(0)", "result = super()", "restore_model_from_cpu(self.local")
    )
    assert restore < inner < back


def test_grpo_makes_one_number_a_response_of_token_advantages():
    """Why masks are applied after it: a mask in the rewards or advantages before would be lost here."""
    from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

    rewards = torch.zeros(2, 3)
    rewards[0, 2] = 1.0
    advantages, _ = compute_grpo_outcome_advantage(
        token_level_rewards=rewards, response_mask=torch.ones(2, 3), index=["a", "a"]
    )
    assert all(len(set(row.tolist())) == 1 for row in advantages)


def test_the_actor_worker_names_the_class_that_trains():
    assert ActorRolloutRefWorker.actor_worker_cls is TrainingWorker
    assert "self.actor_worker_cls(" in inspect.getsource(ActorRolloutRefWorker.init_model)
    assert "self.train_batch(mini_batch_td)" in inspect.getsource(TrainingWorker.train_mini_batch)
    assert "loss_function=self.loss_fn" in inspect.getsource(TrainingWorker.train_batch)


def test_the_engine_gives_sums_of_squared_probabilities_when_asked():
    source = inspect.getsource(transformer_impl.FSDPEngineWithLMHead.prepare_model_outputs)
    assert 'key="calculate_sum_pi_squared"' in source and 'model_output["sum_pi_squared"]' in source


def test_the_masked_loss_survives_a_response_without_tokens():
    from verl.trainer.ppo.core_algos import agg_loss

    mask = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    loss = torch.ones(2, 2)
    assert float(agg_loss(loss, mask, "seq-mean-token-mean", global_batch_size=2)) == pytest.approx(0.5)
    assert float(agg_loss(loss, mask, "token-mean", batch_num_tokens=2)) == pytest.approx(1.0)
