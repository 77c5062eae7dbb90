"""The recipes of Temporal-RLT and Video-RTS: published settings, and a scorer that takes what they pass."""

import pytest
from omegaconf import OmegaConf
from verl.trainer.ppo.reward import get_custom_reward_fn

TEMPORAL_RLT = {
    # appletea233/Temporal-R1, examples/run_qwen2_5_vl_3b_tvg.sh and examples/grpo_example.yaml
    "actor_rollout_ref.model.path": "Qwen/Qwen2.5-VL-3B-Instruct",
    "data.max_prompt_length": 4096,
    "data.max_response_length": 2048,
    "data.truncation": "error",
    "data.train_batch_size": 16,
    "actor_rollout_ref.actor.ppo_mini_batch_size": 16,
    "actor_rollout_ref.rollout.n": 8,
    "actor_rollout_ref.rollout.temperature": 1.0,
    "actor_rollout_ref.rollout.top_p": 1.0,
    "actor_rollout_ref.actor.optim.lr": 1e-6,
    "actor_rollout_ref.actor.optim.lr_scheduler_type": "constant",
    "actor_rollout_ref.actor.optim.lr_warmup_steps_ratio": 0.0,
    "actor_rollout_ref.actor.optim.weight_decay": 0.01,
    "actor_rollout_ref.actor.optim.clip_grad": 1.0,
    "actor_rollout_ref.actor.grad_clip": 1.0,
    "actor_rollout_ref.actor.clip_ratio": 0.2,
    "actor_rollout_ref.actor.loss_agg_mode": "token-mean",
    "actor_rollout_ref.actor.use_kl_loss": True,
    "actor_rollout_ref.actor.kl_loss_type": "low_var_kl",
    "actor_rollout_ref.actor.kl_loss_coef": 0.01,
    "actor_rollout_ref.actor.entropy_coeff": 0.001,
    "algorithm.use_kl_in_reward": False,
    "trainer.total_epochs": 15,
    "trainer.save_freq": 50,
    "trainer.n_gpus_per_node": 8,
    "data.care.video": {"fps": 2.0, "total_pixels": 1605632, "min_pixels": 3136},
    "reward.reward_manager.name": "naive",
}

VIDEO_RTS = {
    # arXiv 2507.06485; Ziyang412/Video-RTS
    "actor_rollout_ref.model.path": "Qwen/Qwen2.5-VL-7B-Instruct",
    "data.care.video": {"nframes": 32, "min_pixels": 3136, "max_pixels": 89600},
    "data.max_response_length": 1024,
    "actor_rollout_ref.rollout.temperature": 1.0,
    "actor_rollout_ref.rollout.top_p": 1.0,
    "actor_rollout_ref.actor.loss_agg_mode": "seq-mean-token-mean",
    "actor_rollout_ref.actor.use_kl_loss": True,
    "care.scoring": "lenient",
    "reward.reward_manager.name": "naive",
}


@pytest.mark.parametrize(
    ("recipe", "key", "value"),
    [
        (name, *item)
        for name, table in (("temporal_rlt", TEMPORAL_RLT), ("video_rts", VIDEO_RTS))
        for item in table.items()
    ],
)
def test_a_recipe_is_the_published_run(recipe, key, value, compose_job):
    assert OmegaConf.select(compose_job(f"+recipe={recipe}"), key, throw_on_missing=True) == value


def scored(config, answer, ground_truth, problem_type):
    function = get_custom_reward_fn(config)
    response = f"<think>so</think><answer>{answer}</answer>"
    extra_info = {"index": 0, "problem_type": problem_type, "options": ["A. cup", "B. pen"], "duration": 10.0}
    return function(data_source="demo", solution_str=response, ground_truth=ground_truth, extra_info=extra_info)


def test_temporal_rlt_rewards_by_hand(compose_job):
    config = compose_job("+recipe=temporal_rlt")
    # 0.5 * 2 / 4 + 0.5
    assert scored(config, "4 to 6", "[[2, 6]]", "temporal grounding")["score"] == 0.75
    assert scored(config, "B", "B", "multiple choice")["score"] == 1.0
    # 0.25 + 0.25 * 0.5 + 0.5
    both = scored(config, "B; 4 to 6", '{"answer": "B", "spans": [[2, 6]]}', "grounded QA")
    assert (both["score"], both["acc_answer"], both["acc_iou"]) == (0.875, 1.0, 0.5)


def test_the_boundary_aware_variant_is_one_word(compose_job):
    change = "reward.custom_reward_function.reward_kwargs.span_reward=boundary"
    # 0.5 * (0.5 * 0.8) + 0.5
    result = scored(compose_job("+recipe=temporal_rlt", change), "4 to 6", "[[2, 6]]", "temporal grounding")
    assert result["score"] == pytest.approx(0.7)


def test_video_rts_takes_a_letter_in_any_dress(compose_job):
    result = scored(compose_job("+recipe=video_rts"), "B. pen", "B", "multiple choice")
    assert (result["acc"], result["score"]) == (1.0, 2.0)


@pytest.mark.parametrize("recipe", ["temporal_rlt", "video_rts"])
def test_care_shapes_the_same_rewards_by_one_word(recipe, compose_job):
    config = compose_job(f"+recipe={recipe}", "reward.reward_manager.name=care")
    assert config.trainer.v1.trainer_mode == "care_sync"
    config.reward.reward_manager.name = "naive"
    assert config == compose_job(f"+recipe={recipe}")
