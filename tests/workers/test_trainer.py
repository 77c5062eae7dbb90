"""The trainer hook on a real TransferQueue: balance -> log-probs -> advantages -> metrics, with verl's own trainers."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import transfer_queue as tq

from verl_care.config import CareConfig
from verl_care.shaping.care import shape
from verl_care.testing import build_config, build_trainer, make_group, put_groups, put_rows, read_rows, run_update

N = 4
SCORER = [
    "reward.custom_reward_function.path=pkg://verl_care.rewards.scorer",
    "reward.custom_reward_function.name=compute_score",
]
PROMPTS = {
    # Right answers short and long, a failed session, graded accuracy, all right, all wrong.
    "a": {"accuracy": [1, 1, 0, 0], "length": [40, 400, 90, 30]},
    "b": {"accuracy": [1, None, 0, 1], "length": [60, 5, 200, 310], "modality": "image", "format": [1, 0, 0, 1]},
    "c": {"accuracy": [0.4, 0.8, 0, 0.2], "length": [12, 80, 500, 33], "problem_type": "OCR"},
    "d": {"accuracy": [1, 1, 1, 1], "length": [50, 150, 250, 350], "modality": "text"},
}


SEPARATE = [
    "data.train_batch_size=4",
    "actor_rollout_ref.actor.ppo_mini_batch_size=2",
    "trainer.v1.separate_async.parameter_sync_step=2",
    "actor_rollout_ref.rollout.nnodes=1",
    "actor_rollout_ref.rollout.checkpoint_engine.backend=nccl",
]
MODES = pytest.mark.parametrize(
    ("mode", "overrides"), [("care_sync", []), ("care_colocate_async", []), ("care_separate_async", SEPARATE)]
)


@functools.cache
def compose(mode, manager, overrides):
    return build_config(
        [
            "data.train_batch_size=4",
            "actor_rollout_ref.actor.ppo_mini_batch_size=4",
            f"actor_rollout_ref.rollout.n={N}",
            f"trainer.v1.trainer_mode={mode}",
            f"reward.reward_manager.name={manager}",
            *SCORER,
            *overrides,
        ]
    )


def make_config(tmp_path, *overrides, mode="care_sync", manager="care"):
    config = compose(mode, manager, overrides).copy()
    config.trainer.default_local_dir = str(tmp_path)
    return config


def make_trainer(tmp_path, *overrides, mode="care_sync", **arguments):
    return build_trainer(mode, make_config(tmp_path, *overrides, mode=mode, **arguments))


def make_rows(prompts=PROMPTS, **arguments):
    groups = [make_group(uid, index=i, **group, **arguments) for i, (uid, group) in enumerate(prompts.items())]
    return [row for rows in groups for row in rows]


def put(rows, partition):
    """Puts rows into an emptied partition: a run before left fields under the same keys."""
    old = list((tq.kv_list(partition) or {}).get(partition, {}))
    if old:
        tq.kv_clear(keys=old, partition_id=partition)
    return put_rows(rows, partition)


def advantages_of(update):
    return {key: row["advantages"] for key, row in read_rows(update.batch, "advantages").items()}


def expected_of(prompts=PROMPTS, competence=0.60, config=None, evicted=None):
    """``{key of the final row: (score, bonus)}`` and the new competence, straight from ``shape``."""
    keys, accuracy, length, group, score = [], [], [], [], []
    for g, (uid, prompt) in enumerate(prompts.items()):
        for session, acc in enumerate(prompt["accuracy"]):
            if acc is None:
                continue
            lengths = prompt["length"][session]
            lengths = lengths if isinstance(lengths, list) else [lengths]
            formats = prompt.get("format", 1)
            keys.append(f"{uid}_{session}_{len(lengths) - 1}")
            accuracy.append(float(acc))
            length.append(float(lengths[-1]))
            group.append(g)
            score.append(acc + (formats[session] if isinstance(formats, list) else formats))
    out = shape(
        torch.tensor(accuracy),
        torch.tensor(length),
        torch.tensor(group),
        competence,
        config or CareConfig(),
        evicted_pass_rate=evicted,
    )
    return {key: (s, float(b)) for key, s, b in zip(keys, score, out.bonus, strict=True)}, out.competence


def totals(update, field):
    return {key: float(row[field].sum()) for key, row in read_rows(update.batch, field).items()}


def grpo(rewards):
    """verl's GRPO advantage of one group's rewards."""
    rewards = torch.tensor(rewards, dtype=torch.float32)
    return ((rewards - rewards.mean()) / (rewards.std() + 1e-6)).tolist()


# ---------------------------------------------------------------- rewards and advantages


def test_rewards_are_shaped_and_scores_stay_raw(partition, tmp_path):
    trainer = make_trainer(tmp_path)
    update = run_update(trainer, put(make_rows(), partition))
    expected, competence = expected_of()
    scores, rewards = totals(update, "rm_scores"), totals(update, "token_level_rewards")
    for key, (score, bonus) in expected.items():
        assert scores[key] == pytest.approx(score, abs=1e-6), key
        assert rewards[key] == pytest.approx(score + bonus, abs=1e-5), key
    for key, row in read_rows(update.batch, "token_level_rewards").items():
        assert not row["token_level_rewards"][:-1].any(), f"{key}: the reward belongs on the last token"
    mean_score = sum(score for score, _ in expected.values()) / len(expected)
    mean_bonus = sum(bonus for _, bonus in expected.values()) / len(expected)
    assert update.metrics["critic/score/mean"] == pytest.approx(mean_score, abs=1e-5)
    assert update.metrics["critic/rewards/mean"] == pytest.approx(mean_score + mean_bonus, abs=1e-5)
    assert mean_bonus > 0.05
    assert update.metrics["care/competence"] == pytest.approx(competence, abs=1e-6)


def test_advantages_come_from_the_shaped_rewards_of_each_row(partition, tmp_path):
    update = run_update(make_trainer(tmp_path), put(make_rows(), partition))
    expected, _ = expected_of()
    advantages = read_rows(update.batch, "advantages", "response_mask")
    for uid in PROMPTS:
        keys = [key for key in expected if key.startswith(f"{uid}_")]
        for key, advantage in zip(keys, grpo([sum(expected[key]) for key in keys]), strict=True):
            row = advantages[key]
            assert torch.allclose(row["advantages"], advantage * row["response_mask"], atol=1e-3), key


def test_the_bonus_follows_its_row_through_balancing(partition, tmp_path):
    rows = make_rows()
    batch = put(rows, partition)
    update = run_update(make_trainer(tmp_path), batch)
    assert update.keys() != [row.key for row in rows], "balancing left the order as it was: the test shows nothing"
    straight = totals(update, "token_level_rewards")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1)).tolist()
    again = run_update(make_trainer(tmp_path), put([rows[i] for i in order], partition))
    shuffled = totals(again, "token_level_rewards")
    for key in update.keys():
        assert shuffled[key] == pytest.approx(straight[key], abs=1e-6), key


def test_the_actor_trains_on_shaped_advantages_and_no_more_columns_than_under_sync(partition, tmp_path):
    trainer = make_trainer(tmp_path)
    update = run_update(trainer, put(make_rows(), partition))
    advantages = advantages_of(update)
    stock = make_trainer(tmp_path, mode="sync", manager="naive")
    run_update(stock, put(make_rows(), partition))
    ours, theirs = trainer.actor_rollout_wg.trained[0], stock.actor_rollout_wg.trained[0]
    for key in update.keys():
        assert torch.equal(ours[key]["advantages"], advantages[key])
        assert set(ours[key]) - set(theirs[key]) <= {"token_level_rewards"}


def test_padding_rows_stay_as_verl_made_them(partition, tmp_path):
    trainer = make_trainer(tmp_path)
    update = run_update(trainer, put(make_rows(), partition))
    padding = update.keys(padding=True)
    assert len(padding) == 1, "15 rows should be filled up to 16"
    row = read_rows(update.batch, "rm_scores", "token_level_rewards", "advantages", "response_mask")[padding[0]]
    assert not any(value.any() for value in row.values())
    # Nor do they count as a group: one of four is all right.
    assert update.metrics["care/groups/all_right"] == pytest.approx(1 / 4)


def test_only_the_final_output_of_a_session_counts(partition, tmp_path):
    several = {
        "a": {"accuracy": [1, 1, 0, 0], "length": [[700, 40], 400, [5, 6, 90], 30]},
        "b": {"accuracy": [1, 0, 0, 1], "length": [60, 80, 200, 310]},
    }
    single = {
        "a": {"accuracy": [1, 1, 0, 0], "length": [40, 400, 90, 30]},
        "b": {"accuracy": [1, 0, 0, 1], "length": [60, 80, 200, 310]},
    }
    many = run_update(make_trainer(tmp_path), put(make_rows(several), partition))
    rewards, advantages = totals(many, "token_level_rewards"), advantages_of(many)
    one = run_update(make_trainer(tmp_path), put(make_rows(single), partition))
    plain = totals(one, "token_level_rewards")
    final = {"a_0_1": "a_0_0", "a_1_0": "a_1_0", "a_2_2": "a_2_0", "a_3_0": "a_3_0", "b_0_0": "b_0_0"}
    for key, key_alone in final.items():
        assert rewards[key] == pytest.approx(plain[key_alone], abs=1e-6), key
    assert advantages["a_0_0"][0] == advantages["a_0_1"][0] and advantages["a_2_0"][0] == advantages["a_2_2"][0]
    for name in ("care/competence", "care/pass_rate", "care/response_length/mean", "care/effort_ratio"):
        assert many.metrics[name] == pytest.approx(one.metrics[name], abs=1e-6), name


@MODES
def test_short_groups_count_their_survivors(partition, tmp_path, mode, overrides):
    prompts = {"a": {"accuracy": [1, None, None, 0], "length": [40] * 4}, "b": PROMPTS["d"]}
    trainer = make_trainer(tmp_path, *overrides, mode=mode)
    update = run_update(trainer, put(make_rows(prompts), partition))
    expected, competence = expected_of(prompts)
    assert update.metrics["care/pass_rate"] == pytest.approx(0.75)
    asked = 8 if mode == "care_separate_async" else 16
    assert update.metrics["care/rollouts/missing"] == pytest.approx(1 - 6 / asked)
    assert update.metrics["care/groups/short"] == 0.5 and update.metrics["care/groups/single"] == 0
    assert update.metrics["care/competence"] == pytest.approx(competence, abs=1e-6)
    rewards = totals(update, "token_level_rewards")
    for key, parts in expected.items():
        assert rewards[key] == pytest.approx(sum(parts), abs=1e-5), key


@MODES
def test_a_lone_survivor_gets_what_verl_gives_it(partition, tmp_path, mode, overrides):
    prompts = {"a": {"accuracy": [None, 1, None, None], "length": [40] * 4}, "b": PROMPTS["a"]}
    update = run_update(make_trainer(tmp_path, *overrides, mode=mode), put(make_rows(prompts), partition))
    assert update.metrics["care/groups/single"] == 0.5
    expected, _ = expected_of(prompts)
    advantage = read_rows(update.batch, "advantages")["a_1_0"]["advantages"]
    assert torch.allclose(advantage, torch.tensor(sum(expected["a_1_0"])), atol=1e-4)


@MODES
def test_a_batch_with_nothing_right_moves_by_format_alone(partition, tmp_path, mode, overrides):
    # Empty responses (an end token alone), budget-long ones and missing formats, none of them right.
    wrong = {"accuracy": [0] * 4, "length": [1, 1, 700, 30], "format": [0, 1, 0, 1]}
    trainer = make_trainer(tmp_path, *overrides, mode=mode)
    update = run_update(trainer, put(make_rows({"a": wrong, "b": wrong}), partition))
    assert totals(update, "token_level_rewards") == totals(update, "rm_scores")
    assert update.metrics["care/groups/all_wrong"] == 1 and update.metrics["care/pass_rate"] == 0
    assert update.metrics["care/competence"] == pytest.approx(0.60 * 0.99, abs=1e-6)
    for uid in "ab":
        for session, advantage in enumerate(grpo(wrong["format"])):
            row = advantages_of(update)[f"{uid}_{session}_0"]
            assert torch.allclose(row, torch.full_like(row, advantage), atol=1e-4)


def test_kl_in_the_reward_comes_on_top_of_shaping(partition, tmp_path):
    trainer = make_trainer(tmp_path, "algorithm.use_kl_in_reward=True")
    trainer.actor_rollout_wg.version = 2  # the policy is 0.02 below the reference at every token
    update = run_update(trainer, put(make_rows(), partition))
    expected, _ = expected_of()
    rows = read_rows(update.batch, "token_level_rewards", "rm_scores", "response_mask")
    beta = trainer.config.algorithm.kl_ctrl.kl_coef
    for key, (score, bonus) in expected.items():
        row = rows[key]
        kl = -0.02 * float(row["response_mask"].sum())
        assert float(row["rm_scores"].sum()) == pytest.approx(score, abs=1e-6)
        assert float(row["token_level_rewards"].sum()) == pytest.approx(score + bonus - beta * kl, abs=1e-4), key


@pytest.mark.parametrize("estimator", ["grpo", "reinforce_plus_plus", "rloo"])
def test_other_estimators_get_shaped_rewards_too(partition, tmp_path, estimator):
    overrides = [f"algorithm.adv_estimator={estimator}"]
    shaped = run_update(make_trainer(tmp_path, *overrides), put(make_rows(), partition))
    ours = advantages_of(shaped)
    plain = run_update(make_trainer(tmp_path, *overrides, manager="naive"), put(make_rows(), partition))
    theirs = advantages_of(plain)
    moved = [key for key in shaped.keys() if not torch.allclose(ours[key], theirs[key])]
    # In the all-right group only shaping makes a difference.
    assert {"d_0_0", "d_1_0", "d_2_0", "d_3_0"} <= set(moved)


# ---------------------------------------------------------------- managers


def test_naive_under_our_trainer_is_stock_sync(partition, tmp_path):
    rows = make_rows()
    ours = run_update(make_trainer(tmp_path, manager="naive"), put(rows, partition))
    left = advantages_of(ours)
    theirs = run_update(make_trainer(tmp_path, mode="sync", manager="naive"), put(rows, partition))
    right = advantages_of(theirs)
    for row in rows:
        assert torch.equal(left[row.key], right[row.key]), row.key
    for statistic in ("mean", "max", "min"):
        assert ours.metrics[f"critic/rewards/{statistic}"] == ours.metrics[f"critic/score/{statistic}"]
        assert ours.metrics[f"critic/advantages/{statistic}"] == theirs.metrics[f"critic/advantages/{statistic}"]
    assert "care/competence" not in ours.metrics and not (tmp_path / "global_step_1" / "care_state.json").exists()


def test_dapo_is_left_alone_too(partition, tmp_path):
    trainer = make_trainer(tmp_path, manager="dapo")
    update = run_update(trainer, put(make_rows(), partition))
    assert update.metrics["critic/rewards/mean"] == update.metrics["critic/score/mean"]


def test_zero_coefficients_train_like_naive(partition, tmp_path):
    rows = make_rows()
    stages = ("explore_hard", "explore", "refine", "concise")
    off = [f"+care.shaping.{stage}.coefficient=0" for stage in stages]
    left = advantages_of(run_update(make_trainer(tmp_path, *off), put(rows, partition)))
    right = advantages_of(run_update(make_trainer(tmp_path, manager="naive"), put(rows, partition)))
    for row in rows:
        assert torch.equal(left[row.key], right[row.key]), row.key


def test_another_rule_shapes_when_its_manager_is_named(partition, tmp_path):
    from verl_care.shaping import get_rule
    from verl_care.shaping.base import ShapingBatch

    prompts = {"a": {"accuracy": [1, 1, 0, 0], "length": [40, 400, 90, 30]}, "b": PROMPTS["d"]}
    rows = make_rows(prompts)
    update = run_update(make_trainer(tmp_path, manager="kimi_k1_5"), put(rows, partition))
    accuracy = torch.tensor([1, 1, 0, 0, 1, 1, 1, 1.0])
    shaped, _ = get_rule("kimi_k1_5")(
        ShapingBatch(
            score=accuracy + 1,
            accuracy=accuracy,
            correct=accuracy > 0.1,
            length=torch.tensor([40.0, 400, 90, 30, 50, 150, 250, 350]),
            group=torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]),
        )
    )
    rewards = totals(update, "token_level_rewards")
    assert shaped.bonus.abs().max() > 0.1
    for row, score, bonus in zip(rows, accuracy + 1, shaped.bonus, strict=True):
        assert rewards[row.key] == pytest.approx(float(score + bonus), abs=1e-5), row.key


@pytest.mark.parametrize("manager", ["care", "kimi_k1_5"])
@pytest.mark.parametrize("mode", ["sync", "colocate_async"])
def test_our_manager_refuses_a_trainer_without_the_hook(tmp_path, manager, mode):
    from verl.trainer.ppo.reward import load_reward_manager

    from verl_care.testing import ByteTokenizer

    config = make_config(tmp_path, mode=mode, manager=manager)
    with pytest.raises(RuntimeError, match=r"trainer\.v1\.trainer_mode=care_sync") as error:
        load_reward_manager(config, ByteTokenizer())
    assert "\n" not in str(error.value) and manager in str(error.value)


def test_our_manager_starts_under_our_trainer(tmp_path):
    from verl.trainer.ppo.reward import load_reward_manager

    trainer = make_trainer(tmp_path)
    assert type(load_reward_manager(trainer.config, trainer.tokenizer)).__name__ == "CareRewardManager"


def test_a_rollout_without_accuracy_is_an_error_that_names_its_record(partition, tmp_path):
    info = [{"score": 1.0}] * N
    batch = put(make_group("a", accuracy=[1] * N, reward_extra_info=info, data_source="mine", index=17), partition)
    with pytest.raises(ValueError, match="mine/17"):
        run_update(make_trainer(tmp_path), batch)


def test_temporal_contrast_adds_its_bonus_where_ordered_frames_win(partition, tmp_path):
    def info(acc, shuffled):
        return {"score": acc + 1.0, "acc": acc, "format": 1.0, "unparsed": 0.0, "acc_shuffled": shuffled}

    wins = [info(1.0, 0.0), info(1.0, 1.0), info(0.0, None), info(1.0, None)]  # 0.75 >= 0.8 * 0.5
    loses = [info(1.0, 1.0), info(0.0, 1.0), info(0.0, None), info(0.0, None)]  # 0.25 < 0.8 * 1.0
    rows = make_group("a", accuracy=[1, 1, 0, 1], length=20, reward_extra_info=wins)
    rows += make_group("b", accuracy=[1, 0, 0, 0], length=20, reward_extra_info=loses, index=1)
    prompts = {
        "a": {"accuracy": [1, 1, 0, 1], "length": [20] * 4},
        "b": {"accuracy": [1, 0, 0, 0], "length": [20] * 4},
    }
    update = run_update(make_trainer(tmp_path), put(rows, partition))
    expected, _ = expected_of(prompts)
    rewards = totals(update, "token_level_rewards")
    for key, (score, bonus) in expected.items():
        temporal = 0.3 if key in ("a_0_0", "a_1_0", "a_3_0") else 0.0
        assert rewards[key] == pytest.approx(score + bonus + temporal, abs=1e-5), key


# ---------------------------------------------------------------- state and log


def step(trainer, partition, prompts=PROMPTS, **arguments):
    rows = make_rows(prompts, global_steps=trainer.global_steps, **arguments)
    update = run_update(trainer, put(rows, partition))
    trainer.global_steps += 1
    return update


def varied(i):
    """Prompts whose pass rates differ from step to step."""
    return {
        uid: {**group, "accuracy": group["accuracy"][i % N :] + group["accuracy"][: i % N]}
        for uid, group in list(PROMPTS.items())[: 2 + i % 3]
    }


def competence_of(trainer):
    return trainer.shaper_state.to_dict()["competence"]


def test_the_state_is_saved_before_the_checkpoint_is_marked_complete(partition, tmp_path):
    trainer = make_trainer(tmp_path)
    step(trainer, partition)
    trainer.global_steps = 1
    state = tmp_path / "global_step_1" / "care_state.json"
    tracker = tmp_path / "latest_checkpointed_iteration.txt"
    seen = []

    class Loader:
        def state_dict(self):
            seen.append((state.exists(), tracker.exists()))
            return {}

    trainer.train_dataloader = Loader()
    trainer._save_checkpoint()
    assert seen == [(True, False)] and tracker.read_text() == "1"
    assert json.loads(state.read_text())["state"]["competence"] == competence_of(trainer)


def test_a_crash_while_saving_leaves_no_complete_checkpoint(partition, tmp_path):
    trainer = make_trainer(tmp_path)
    step(trainer, partition)

    def crash(*_, **__):
        raise OSError("disk full")

    trainer.actor_rollout_wg.save_checkpoint = crash
    with pytest.raises(OSError, match="disk full"):
        trainer._save_checkpoint()
    assert not (tmp_path / "latest_checkpointed_iteration.txt").exists()
    fresh = make_trainer(tmp_path)
    fresh._load_checkpoint()
    assert fresh.global_steps == 0 and competence_of(fresh) == [0.60]


@pytest.mark.parametrize("resume", ["auto", "resume_path"])
def test_resumed_updates_equal_uninterrupted_ones(partition, tmp_path, resume):
    whole = make_trainer(tmp_path / "whole")
    for i in range(5):
        step(whole, partition, varied(i))

    first = make_trainer(tmp_path / "run")
    for i in range(2):
        step(first, partition, varied(i))
    first.global_steps = 2
    first._save_checkpoint()

    overrides = [f"trainer.resume_mode={resume}"]
    if resume == "resume_path":
        overrides.append(f"trainer.resume_from_path={tmp_path}/run/global_step_2")
    second = make_trainer(tmp_path / "run", *overrides)
    second._load_checkpoint()
    assert second.global_steps == 2 and competence_of(second) == competence_of(first)
    second.global_steps = 3
    for i in range(2, 5):
        update = step(second, partition, varied(i))
    assert competence_of(second) == pytest.approx(competence_of(whole), abs=1e-9)
    assert second.shaper_state == whole.shaper_state
    assert update.metrics["care/competence"] == pytest.approx(competence_of(whole)[0], abs=1e-9)


def test_a_checkpoint_without_state_is_refused_or_begun_anew(partition, tmp_path):
    plain = make_trainer(tmp_path, manager="naive")
    step(plain, partition)
    plain.global_steps = 1
    plain._save_checkpoint()
    with pytest.raises(RuntimeError, match=r"care_state\.json.*on_missing_state=fresh"):
        make_trainer(tmp_path)._load_checkpoint()
    fresh = make_trainer(tmp_path, "+care.on_missing_state=fresh")
    fresh._load_checkpoint()
    assert fresh.global_steps == 1 and competence_of(fresh) == [0.60]


def log_of(tmp_path) -> list[dict]:
    files = sorted((tmp_path / "care_rollouts").glob("*.parquet"), key=lambda f: [int(x) for x in f.stem.split("_")])
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def replay(rows, competence=0.60):
    """Competence after the updates of a log, by ``shape`` alone."""
    for number in sorted({(row["step"], row["update"]) for row in rows}):
        batch = [row for row in rows if (row["step"], row["update"]) == number]
        groups = sorted({row["uid"] for row in batch})
        evicted = batch[0]["evicted_pass_rate"]
        out = shape(
            torch.tensor([row["acc"] for row in batch]),
            torch.tensor([float(row["length"]) for row in batch]),
            torch.tensor([groups.index(row["uid"]) for row in batch]),
            competence,
            evicted_pass_rate=None if evicted is None else torch.tensor(evicted),
        )
        competence = out.competence
        for row, bonus, ratio in zip(batch, out.bonus.tolist(), out.effort_ratio.tolist(), strict=True):
            assert row["bonus"] == pytest.approx(bonus, abs=1e-5)
            assert row["effort_ratio"] == pytest.approx(ratio, abs=1e-5)
            assert row["stage"] == out.stage
    return competence


def test_the_saved_state_is_the_log_replayed(partition, tmp_path):
    trainer = make_trainer(tmp_path)
    for i in range(4):
        step(trainer, partition, varied(i))
    rows = log_of(tmp_path)
    assert sorted({row["step"] for row in rows}) == [1, 2, 3, 4]
    assert replay(rows) == pytest.approx(competence_of(trainer)[0], abs=1e-7)


def test_the_log_holds_what_shaping_saw(partition, tmp_path):
    responses = ["<think>a</think><answer>B</answer>", "<answer>Ä</answer>", "", "no tags"]
    rows = make_group("a", accuracy=[1, 0, 0, 1], responses=responses, data_source="Video-R1", index=12)
    rows += make_group("b", accuracy=[1, None, 1, 0], length=[[9, 8], 4, 3, 70], index=13, format=0)
    update = run_update(make_trainer(tmp_path), put(rows, partition))
    log = {(row["uid"], row["session"]): row for row in log_of(tmp_path)}
    assert log.keys() == {("a", 0), ("a", 1), ("a", 2), ("a", 3), ("b", 0), ("b", 2), ("b", 3)}
    assert [log["a", i]["response"] for i in range(4)] == responses
    assert {row["prompt_key"] for row in log.values()} == {"Video-R1/12", "toy/13"}
    assert {row["data_source"] for row in log.values()} == {"Video-R1", "toy"}
    assert log["b", 0]["length"] == 8 and log["a", 2]["length"] == 1
    rewards = totals(update, "token_level_rewards")
    for key in ("a_0_0", "a_1_0", "b_0_1", "b_3_0"):
        uid, session, _ = key.split("_")
        row = log[uid, int(session)]
        assert row["reward"] == pytest.approx(rewards[key], abs=1e-6)
        assert row["score"] + row["bonus"] == pytest.approx(row["reward"], abs=1e-6)
    assert log["b", 3]["score"] == 0 and log["b", 3]["format"] == 0 and log["b", 3]["acc"] == 0
    assert log["b", 2]["pass_rate"] == pytest.approx(2 / 3)
    assert all(row["step"] == 1 for row in log.values())


def test_naive_is_logged_without_bonus(partition, tmp_path):
    run_update(make_trainer(tmp_path, manager="naive"), put(make_rows(), partition))
    rows = log_of(tmp_path)
    assert len(rows) == 15 and all(row["reward"] == row["score"] and not row["bonus"] for row in rows)


def test_the_log_can_be_switched_off(partition, tmp_path):
    trainer = make_trainer(tmp_path, "+care.rollout_log.enabled=False")
    run_update(trainer, put(make_rows(), partition))
    assert not list(tmp_path.rglob("*.parquet"))


# ---------------------------------------------------------------- group filtering, async, cost


def test_group_filtering_reads_raw_accuracy_and_the_competence_counts_what_it_took(train_partition, tmp_path):
    overrides = ["algorithm.filter_groups.enable=True", "algorithm.filter_groups.metric=acc", "data.train_batch_size=2"]
    overrides.append("actor_rollout_ref.actor.ppo_mini_batch_size=2")
    trainer = make_trainer(tmp_path, *overrides)
    kept = {uid: {**PROMPTS[uid], "accuracy": [1, 1, 0, 0]} for uid in ("a", "b")}
    # Equal accuracies but different lengths and formats: scores and shaped rewards differ.
    all_wrong = {"accuracy": [0] * N, "length": [10, 20, 30, 40], "format": [0, 1, 0, 1]}
    taken = {"d": PROMPTS["d"], "e": all_wrong, "f": PROMPTS["d"]}
    put_groups([make_rows({uid: group}) for uid, group in (kept | taken).items()], train_partition, n=N)
    update = run_update(trainer, 2)
    assert {key.split("_")[0] for key in update.keys()} == {"a", "b"}
    assert update.metrics["training/filter_groups/evicted_samples"] == 3
    _, competence = expected_of(kept, evicted=torch.tensor([1.0, 0.0, 1.0]))
    assert update.metrics["care/competence"] == pytest.approx(competence, abs=1e-6)
    assert competence != pytest.approx(expected_of(kept)[1], abs=1e-4)
    assert replay(log_of(tmp_path)) == pytest.approx(competence, abs=1e-6)


def test_group_filtering_by_another_metric_warns_and_counts_who_is_left(train_partition, tmp_path, caplog):
    overrides = ["algorithm.filter_groups.enable=True", "algorithm.filter_groups.metric=reward"]
    trainer = make_trainer(
        tmp_path, *overrides, "data.train_batch_size=2", "actor_rollout_ref.actor.ppo_mini_batch_size=2"
    )
    # The score is accuracy plus format: an all-wrong group with different formats stays.
    kept = {"a": PROMPTS["a"], "e": {"accuracy": [0] * N, "length": [10, 20, 30, 40], "format": [0, 1, 0, 1]}}
    put_groups([make_rows({uid: group}) for uid, group in (kept | {"d": PROMPTS["d"]}).items()], train_partition, n=N)
    update = run_update(trainer, 2)
    assert {key.split("_")[0] for key in update.keys()} == {"a", "e"}
    assert update.metrics["training/filter_groups/evicted_samples"] == 1
    assert update.metrics["care/competence"] == pytest.approx(expected_of(kept)[1], abs=1e-6)
    assert any("filter_groups.metric=reward" in message and "metric=acc" in message for message in caplog.messages)


def test_colocate_async_trains_on_whole_groups_and_refills_failed_ones(train_partition, tmp_path):
    trainer = make_trainer(tmp_path, mode="care_colocate_async")
    put_groups([make_rows({uid: PROMPTS[uid]}) for uid in ("a", "b", "c")], train_partition, n=N)
    asked = []

    def refill(num_prompts):
        asked.append(num_prompts)
        put_groups([make_rows({"d": PROMPTS["d"]})], train_partition, n=N)

    trainer.replay_buffer.refill_fn = refill
    update = run_update(trainer, 3)
    whole = {uid: PROMPTS[uid] for uid in ("a", "c", "d")}
    expected, competence = expected_of(whole)
    assert asked == [1] and set(update.keys()) == set(expected)
    assert update.metrics["care/competence"] == pytest.approx(competence, abs=1e-6)
    rewards = totals(update, "token_level_rewards")
    for key, parts in expected.items():
        assert rewards[key] == pytest.approx(sum(parts), abs=1e-5), key


def test_separate_async_shapes_each_local_update(train_partition, tmp_path):
    trainer = make_trainer(tmp_path, *SEPARATE, mode="care_separate_async")
    trainer.prepare_step = lambda: {}
    halves = [
        {"a": PROMPTS["a"], "c": PROMPTS["c"]},
        {"d": PROMPTS["d"], "e": {**PROMPTS["a"], "accuracy": [0, 0, 0, 1]}},
    ]
    # The older prompts go first.
    for age, prompts in enumerate(halves):
        groups = [make_rows({uid: group}, global_steps=age + 1) for uid, group in prompts.items()]
        put_groups(groups, train_partition, n=N)
    trainer.global_steps = 2
    metrics, timing = {}, {}
    batch = trainer.step(metrics, timing)
    timing["step"] = 1.0
    trainer._compute_metrics(batch, metrics, timing, global_steps=2, epoch=0)

    first, after_first = expected_of(halves[0])
    second, after_second = expected_of(halves[1], competence=after_first)
    rewards = {
        key: float(row["token_level_rewards"].sum()) for key, row in read_rows(batch, "token_level_rewards").items()
    }
    assert rewards.keys() == (first | second).keys()
    for key, parts in (first | second).items():
        assert rewards[key] == pytest.approx(sum(parts), abs=1e-5), key
    assert competence_of(trainer) == pytest.approx([after_second], abs=1e-6)
    assert metrics["care/competence"] == pytest.approx(after_second, abs=1e-6)
    log = log_of(tmp_path)
    assert sorted({(row["step"], row["update"]) for row in log}) == [(2, 0), (2, 1)]
    assert replay(log) == pytest.approx(after_second, abs=1e-7)


def test_the_competence_counts_groups_that_go_while_the_hybrid_engine_generates(train_partition, tmp_path):
    from verl.trainer.ppo.v1.trainer_separate_async import HybridEngineMode

    overrides = [*SEPARATE, "trainer.v1.separate_async.hybrid_rollout.enable_switch=True"]
    overrides += ["algorithm.filter_groups.enable=True", "algorithm.filter_groups.metric=acc"]
    trainer = make_trainer(tmp_path, *overrides, mode="care_separate_async")
    mixed = {**PROMPTS["a"], "accuracy": [0, 0, 0, 1]}
    halves = [{"a": mixed, "c": mixed}, {"d": mixed, "e": mixed}]
    taken = {"f": {**mixed, "accuracy": [1] * N}, "g": {**mixed, "accuracy": [0] * N}}
    for age, prompts in enumerate([taken, *halves]):
        groups = [make_rows({uid: group}, global_steps=age + 1) for uid, group in prompts.items()]
        put_groups(groups, train_partition, n=N)
    trainer.global_steps = 3
    trainer._add_batch_to_generate = lambda: None
    trainer.switch_to_trainer = lambda: None
    trainer.replay_buffer.refill_fn = None
    trainer.current_mode = HybridEngineMode.ROLLOUT
    trainer.on_step_begin()
    metrics = {}
    trainer.step(metrics, trainer.timing_raw)

    _, after_first = expected_of(halves[0], evicted=torch.tensor([0.0, 1.0]))
    _, after_second = expected_of(halves[1], competence=after_first)
    assert metrics["training/filter_groups/evicted_samples"] == 2
    assert competence_of(trainer) == pytest.approx([after_second], abs=1e-6)
    assert replay(log_of(tmp_path)) == pytest.approx(after_second, abs=1e-6)


def test_separate_async_resumes_after_a_step_of_several_updates(partition, tmp_path):
    def run(trainer, first, last):
        for trainer.global_steps in range(first, last + 1):
            for trainer.local_trigger_step in (0, 1):
                rows = make_rows(varied(2 * trainer.global_steps + trainer.local_trigger_step))
                run_update(trainer, put(rows, partition))

    whole = make_trainer(tmp_path / "whole", *SEPARATE, mode="care_separate_async")
    run(whole, 1, 3)
    trainer = make_trainer(tmp_path / "run", *SEPARATE, mode="care_separate_async")
    run(trainer, 1, 2)
    trainer._save_checkpoint()
    resumed = make_trainer(tmp_path / "run", *SEPARATE, mode="care_separate_async")
    resumed._load_checkpoint()
    run(resumed, 3, 3)
    assert resumed.shaper_state == whole.shaper_state
    assert replay(log_of(tmp_path / "run")) == pytest.approx(competence_of(whole)[0], abs=1e-7)


@pytest.mark.parametrize(
    ("mode", "buffer", "overrides"),
    [
        ("care_sync", "ReplayBuffer", []),
        ("care_colocate_async", "ReplayBufferAsync", []),
        ("care_separate_async", "ReplayBufferAsync", SEPARATE),
    ],
)
def test_verl_sees_its_own_trainer_modes(tmp_path, mode, buffer, overrides):
    from verl.trainer.ppo.v1 import get_trainer_cls

    trainer = make_trainer(tmp_path, *overrides, mode=mode)
    assert trainer.trainer_mode == trainer.config.trainer.v1.trainer_mode == mode.removeprefix("care_")
    assert type(trainer.replay_buffer).__name__ == buffer
    assert isinstance(trainer, get_trainer_cls(mode.removeprefix("care_")))
    assert trainer.config.care.hook == mode
    assert trainer.parameter_sync_step == (2 if mode == "care_separate_async" else 1)
    stock = build_trainer(
        mode.removeprefix("care_"), make_config(tmp_path, *overrides, mode=mode.removeprefix("care_"))
    )
    if mode == "care_separate_async":
        assert trainer.replay_buffer.poll_interval == stock.replay_buffer.poll_interval
    else:
        assert trainer.replay_buffer.poll_interval < stock.replay_buffer.poll_interval


@pytest.mark.parametrize("manager", ["care", "naive"])
def test_only_the_columns_that_shaping_needs_are_fetched(partition, tmp_path, manager, monkeypatch, transfer_queue):
    trainer = make_trainer(tmp_path, manager=manager)
    fetched = []
    get, hook = transfer_queue.kv_batch_get, trainer._compute_advantage

    def spy_get(keys, partition_id, select_fields=None):
        fetched.append(select_fields)
        return get(keys=keys, partition_id=partition_id, select_fields=select_fields)

    def spied_hook(*args, **kwargs):
        with monkeypatch.context() as patch:
            patch.setattr(transfer_queue, "kv_batch_get", spy_get)
            return hook(*args, **kwargs)

    trainer._compute_advantage = spied_hook
    run_update(trainer, put(make_rows(), partition))
    assert fetched and None not in fetched
    stock = {"uid", "response_mask", "rm_scores", "rollout_log_probs", "old_log_probs", "ref_log_prob", "values"}
    ours = {"extra_fields", "data_source", "index", "responses"}
    assert set().union(*fetched) <= stock | ours


def test_metrics_show_how_much_shaping_moved(partition, tmp_path):
    update = run_update(make_trainer(tmp_path), put(make_rows(), partition))
    metrics = update.metrics
    scores = {uid: [s for key, (s, _) in expected_of()[0].items() if key.startswith(uid)] for uid in PROMPTS}
    rewards = {uid: [sum(p) for key, p in expected_of()[0].items() if key.startswith(uid)] for uid in PROMPTS}
    deltas = [abs(x - y) for uid in PROMPTS for x, y in zip(grpo(rewards[uid]), grpo(scores[uid]), strict=True)]
    assert metrics["care/adv_delta/effort"] == pytest.approx(sum(deltas) / len(deltas), abs=1e-3)
    assert metrics["care/adv_delta/amplifier"] >= 0
    assert metrics["care/groups/effort_only"] == pytest.approx(1 / 4)  # the all-right group
    assert metrics["care/groups/all_right"] == pytest.approx(1 / 4)
    assert metrics["care/groups/mixed"] == pytest.approx(3 / 4)
    assert metrics["care/stage"] == 0
    assert 0 <= metrics["care/effort/capped_share"] <= 1
    assert metrics["care/unparsed"] == 0 and metrics["care/reward_errors"] == 0


def test_every_metric_of_ours_is_averaged_over_local_updates(partition, tmp_path):
    from verl.trainer.ppo.v1.utils import MetricsAggregator

    update = run_update(make_trainer(tmp_path), put(make_rows(), partition))
    names = [name for name in update.metrics if name.startswith("care/")]
    assert len(names) > 10
    assert {name: MetricsAggregator()._get_aggregation_type(name) for name in names} == dict.fromkeys(
        names, "weighted_avg"
    )


def test_a_later_step_forgets_nothing_but_what_it_took(partition, tmp_path):
    trainer = make_trainer(tmp_path)
    files: list[Path] = []
    for i in range(3):
        step(trainer, partition, varied(i))
        files = sorted((tmp_path / "care_rollouts").glob("*.parquet"))
        assert len(files) == i + 1
    # Run again from step 3, as after a resume: its file is replaced, the others stay.
    before = {file.name: file.read_bytes() for file in files}
    trainer.global_steps = 3
    step(trainer, partition, varied(7))
    after = {file.name: file.read_bytes() for file in (tmp_path / "care_rollouts").glob("*.parquet")}
    assert after.keys() == before.keys()
    assert after["1.parquet"] == before["1.parquet"] and after["3.parquet"] != before["3.parquet"]
