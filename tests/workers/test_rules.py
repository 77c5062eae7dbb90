"""Rules behind the trainer hook: columns from records and responses, advantages of their own, on a TransferQueue."""

from __future__ import annotations

import pytest
import torch

from verl_care.shaping import get_rule, groups
from verl_care.shaping.base import ShapingBatch
from verl_care.shaping.grpo_lead import compute_difficulty_weight
from verl_care.testing import (
    add_padding,
    build_config,
    build_trainer,
    make_group,
    put_rows,
    read_rows,
    run_update,
)

N = 4
REFERENCE = {
    "target_length": 120,
    "ref_length": 90,
    "ref_accuracy": 0.5,
    "profile_length": 60,
    "uncertainty": 0.25,
    "no_think": 0,
    "direct": 0,
}
PROMPTS = {
    "a": {"accuracy": [1, 1, 0, 0], "length": [40, 400, 90, 30]},
    "b": {"accuracy": [1, 1, 1, 1], "length": [50, 150, 250, 350], "modality": "text"},
    "c": {"accuracy": [1, 0, 0, 0], "length": [60, 5, 200, 310], "modality": "image"},
}


def make_trainer(tmp_path, manager, *overrides):
    config = build_config(
        [
            "data.train_batch_size=4",
            "actor_rollout_ref.actor.ppo_mini_batch_size=4",
            f"actor_rollout_ref.rollout.n={N}",
            "trainer.v1.trainer_mode=care_sync",
            f"reward.reward_manager.name={manager}",
            "reward.custom_reward_function.path=pkg://verl_care.rewards.scorer",
            "reward.custom_reward_function.name=compute_score",
            f"trainer.default_local_dir={tmp_path}",
            *overrides,
        ]
    )
    return build_trainer("care_sync", config)


def make_rows(**arguments):
    return [
        row
        for i, (uid, prompt) in enumerate(PROMPTS.items())
        for row in make_group(uid, index=i, **prompt, **arguments)
    ]


def rewards_of(update, keys):
    """Reward of each of the rows, without those that verl padded the batch with."""
    rows = read_rows(update.batch, "token_level_rewards")
    return {key: float(rows[key]["token_level_rewards"].sum()) for key in keys}


def shaped_by(rule, extra):
    """Bonus and advantage of each row of PROMPTS by the rule itself, by key of the row."""
    accuracy = torch.tensor([float(a) for prompt in PROMPTS.values() for a in prompt["accuracy"]])
    size = len(accuracy)
    batch = ShapingBatch(
        score=accuracy + 1,
        accuracy=accuracy,
        correct=accuracy > 0.1,
        length=torch.tensor([float(n) for prompt in PROMPTS.values() for n in prompt["length"]]),
        group=torch.arange(size) // N,
        prompt_key=[f"toy/{i // N}" for i in range(size)],
        step=1,
        extra={name: torch.full((size,), float(value)) for name, value in extra.items()},
    )
    shaped, _ = rule(batch)
    keys = [f"{uid}_{session}_0" for uid in PROMPTS for session in range(N)]
    return keys, batch, shaped


@pytest.mark.parametrize(
    ("manager", "constants"),
    [
        ("l1_exact", {}),
        ("l1_max", {}),
        ("o1_pruner", {}),
        ("adapt_think", {}),
        ("vision_think", {}),
        ("pixel_think", {}),
        ("group_relative", {}),
        ("diet", {"form": "target"}),
    ],
)
def test_a_rule_reads_its_columns_from_the_records(partition, tmp_path, manager, constants):
    overrides = [f"+care.rules.{manager}.{name}={value}" for name, value in constants.items()]
    trainer = make_trainer(tmp_path, manager, *overrides)
    update = run_update(trainer, put_rows(make_rows(extra_info=REFERENCE), partition))
    keys, batch, shaped = shaped_by(get_rule(manager, **constants), REFERENCE)
    rewards = rewards_of(update, keys)
    expected = dict(zip(keys, (batch.score + shaped.bonus).tolist(), strict=True))
    assert rewards == pytest.approx(expected, abs=1e-5)
    assert float(shaped.bonus.abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("manager", "field"), [("l1_max", "target_length"), ("o1_pruner", "ref_length"), ("adapt_think", "ref_accuracy")]
)
def test_a_record_without_a_needed_value_is_named_with_the_field(partition, tmp_path, manager, field):
    trainer = make_trainer(tmp_path, manager)
    extra_info = {name: value for name, value in REFERENCE.items() if name != field}
    with pytest.raises(ValueError, match=rf"record toy/0: extra_info\.{field}: missing, and rule {manager} needs it"):
        run_update(trainer, put_rows(make_rows(extra_info=extra_info), partition))


def test_what_a_response_shows_is_measured(partition, tmp_path):
    """AdaptThink's flag from the text, VisionThink's from the turns, without a word in the record."""
    texts = ["<think></think><answer>A</answer>", "<think>so</think><answer>A</answer>"] * 2
    rows = make_group("a", accuracy=[1, 1, 1, 0], responses=texts, extra_info={"ref_accuracy": 0.5})
    update = run_update(make_trainer(tmp_path, "adapt_think"), put_rows(rows, partition))
    rewards = list(rewards_of(update, [f"a_{session}_0" for session in range(N)]).values())
    assert rewards == pytest.approx([2 + 0.05 - 0.5, 2 - 0.5, 2 + 0.05 - 0.5, 1 - 0.5], abs=1e-6)

    rows = make_group("v", accuracy=[1, 1, 1, 0], responses=texts)
    for row, turns in zip(rows, [2, 4, 4, 4], strict=True):
        row.fields["num_turns"] = turns
    update = run_update(make_trainer(tmp_path, "vision_think"), put_rows(rows, partition))
    rewards = list(rewards_of(update, [f"v_{session}_0" for session in range(N)]).values())
    # A third of the right answers is direct, above the threshold of 0.2: only the tool costs.
    assert rewards == pytest.approx([2, 1.9, 1.9, 1], abs=1e-6)


def test_grpo_lead_weights_the_advantages_of_each_group_by_its_difficulty(partition, tmp_path):
    update = run_update(make_trainer(tmp_path, "grpo_lead"), add_padding(put_rows(make_rows(), partition), 8))
    keys, batch, shaped = shaped_by(get_rule("grpo_lead"), {})
    plain = groups.group_advantage(batch.score + shaped.bonus, batch.group)
    rate = groups.group_mean(batch.accuracy, batch.group)
    weight = torch.where(plain > 0, compute_difficulty_weight(rate), compute_difficulty_weight(1 - rate))
    rows = read_rows(update.batch, "advantages", "returns", "response_mask")
    for key, expected in zip(keys, (plain * weight).tolist(), strict=True):
        for field in ("advantages", "returns"):
            torch.testing.assert_close(rows[key][field], torch.full_like(rows[key][field], expected), atol=1e-4, rtol=0)
    # w(3 / 4) = 0.95 for the lone right answer's siblings; the worked value of the catalogue.
    assert float(compute_difficulty_weight(torch.tensor(0.75))) == pytest.approx(0.95)


def test_decoupled_effort_reaches_the_actor(partition, tmp_path):
    update = run_update(
        make_trainer(tmp_path, "care", "+care.shaping.advantage=decoupled"), put_rows(make_rows(), partition)
    )
    joint = run_update(make_trainer(tmp_path, "care"), put_rows(make_rows(), partition + "_joint"))
    keys, batch, shaped = shaped_by(get_rule("care", advantage="decoupled"), {})
    rows, rows_joint = (read_rows(run.batch, "advantages") for run in (update, joint))
    for key, expected in zip(keys, shaped.advantage.tolist(), strict=True):
        assert float(rows[key]["advantages"][0]) == pytest.approx(expected, abs=1e-5)
    # Rewards, and so verl's metrics of them, are those of the joint form.
    assert rewards_of(update, keys) == pytest.approx(rewards_of(joint, keys), abs=1e-6)
    all_right = [key for key in keys if key.startswith("b_")]
    assert max(abs(float(rows_joint[key]["advantages"][0])) for key in all_right) > 0.9
    assert max(abs(float(rows[key]["advantages"][0])) for key in all_right) < 0.8


@pytest.mark.parametrize("overrides", [["algorithm.adv_estimator=rloo"], ["algorithm.use_kl_in_reward=true"]])
def test_advantages_of_a_rule_are_refused_where_verl_makes_something_else(partition, tmp_path, overrides):
    trainer = make_trainer(tmp_path, "grpo_lead", *overrides)
    with pytest.raises(ValueError, match=r"rule grpo_lead gives advantages in place of GRPO's: set algorithm"):
        run_update(trainer, put_rows(make_rows(), partition))
