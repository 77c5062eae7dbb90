"""verl's own `main_ppo`, end to end without an accelerator. The runs are shared between the tests."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from verl_care.cli import app
from verl_care.config import CareConfig

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

FP32_AGREEMENT = 1e-6


@pytest.fixture(scope="session")
def whole(main_ppo, assets, tmp_path_factory):
    """Four steps in one go, checkpoints and validations at 2 and 4, a test set beside the development split."""
    folder = tmp_path_factory.mktemp("whole")
    table = pq.read_table(assets.folder / "val.parquet")
    test = [
        {**row, "data_source": "mvbench", "extra_info": {**row["extra_info"], "split": "test"}}
        for row in table.to_pylist()
        if row["data_source"] == "care_demo"
    ]
    pq.write_table(pa.Table.from_pylist(test, schema=table.schema), folder / "test.parquet")
    return main_ppo(
        folder,
        "trainer.total_training_steps=4",
        "trainer.save_freq=2",
        "trainer.test_freq=2",
        f"+data.care.val_sets.mvbench={folder}/test.parquet",
    )


@pytest.fixture(scope="session")
def resumed(main_ppo, kill_worker, tmp_path_factory):
    """The same, but killed after the checkpoint of step 2 and started again; then without its reward worker after 3."""
    folder: Path = tmp_path_factory.mktemp("resumed")
    marker = folder / "latest_checkpointed_iteration.txt"
    overrides = ("trainer.total_training_steps=4", "trainer.save_freq=2")
    first = main_ppo(folder, *overrides, watch=lambda *_: marker.exists() and marker.read_text().strip() == "2")
    assert first.returncode is None
    killed = []

    def kill_reward_worker(driver: int, last_step: int) -> bool:
        if not killed and last_step == 3:
            kill_worker(driver, "RewardLoopWorker")
            killed.append(driver)
        return False

    run = main_ppo(folder, *overrides, watch=kill_reward_worker)
    assert killed
    return run


@pytest.fixture(scope="session")
def naive(main_ppo, tmp_path_factory):
    """verl's own reward manager on the same recipe, on two workers, with a reference policy."""
    return main_ppo(
        tmp_path_factory.mktemp("naive"),
        "reward.reward_manager.name=naive",
        "trainer.n_gpus_per_node=2",
        "ray_kwargs.ray_init.num_cpus=8",
        "actor_rollout_ref.actor.use_kl_loss=true",
        "trainer.total_training_steps=2",
    )


@pytest.fixture(scope="session")
def asynchronous(main_ppo, tmp_path_factory):
    """The colocated asynchronous trainer."""
    return main_ppo(
        tmp_path_factory.mktemp("async"),
        "trainer.v1.trainer_mode=care_colocate_async",
        "trainer.total_training_steps=3",
        "trainer.save_freq=3",
    )


def test_a_run_trains_on_every_problem_type_and_medium(whole, assets):
    assert sorted(whole.steps) == [1, 2, 3, 4]
    keys = {row["prompt_key"] for step in whole.steps for row in whole.rollouts(step)}
    assert {assets.problem_type[key] for key in keys} == {
        "multiple choice",
        "numerical",
        "OCR",
        "free-form",
        "regression",
    }
    # And within one batch, not only over the run.
    first = {assets.medium[row["prompt_key"]] for row in whole.rollouts(1)}
    assert first == {"video", "image", "text"}
    for step, metrics in whole.steps.items():
        assert len(whole.rollouts(step)) == 16 * 4
        assert 0 < metrics["care/competence"] < 1 and metrics["care/reward_errors"] == 0
        assert metrics["actor/grad_norm"] > 0


def test_weights_change_and_reach_the_rollout(whole):
    early, late = whole.weights(2), whole.weights(4)
    moved = max((late[name] - early[name]).abs().max().item() for name in early)
    assert moved > 1e-4
    # A rollout with the weights of an earlier step would differ by far more than rounding.
    for metrics in whole.steps.values():
        assert metrics["training/rollout_probs_diff_max"] < FP32_AGREEMENT


def test_validation_reports_accuracy_by_source(whole):
    assert 0 <= whole.steps[4]["val-core/care_demo/acc/mean@1"] <= 1
    assert "val-core/care_demo_swapped/acc/mean@1" in whole.steps[4]


def test_a_test_set_is_read_at_the_last_step_alone(whole):
    assert not any("mvbench" in key for key in whole.steps[2])
    assert 0 <= whole.steps[4]["val-core/mvbench/acc/mean@1"] <= 1
    assert whole.steps[4]["care/test_sets/readings"] == 1
    # The development split, at both.
    for step in (2, 4):
        assert "val-core/care_demo/acc/mean@1" in whole.steps[step]


def test_validation_reports_response_lengths_beside_accuracy(whole):
    for source in ("care_demo", "care_demo_swapped", "mvbench"):
        length = whole.steps[4][f"val-core/{source}/response_length/mean@1"]
        assert 1 <= length <= 40


def test_half_of_the_sessions_of_each_video_answer_on_shuffled_frames_too(whole, assets):
    for step, metrics in whole.steps.items():
        rows = whole.rollouts(step)
        accuracies = {(row["prompt_key"], row["session"]): row["acc_shuffled"] for row in rows}
        accuracies = {session: acc for session, acc in accuracies.items() if acc is not None}
        of_videos = [row for row in rows if assets.medium[row["prompt_key"]] == "video"]
        assert of_videos
        assert accuracies.keys() == {(row["prompt_key"], session) for row in of_videos for session in (0, 1)}

        ordered = sum(row["acc"] for row in of_videos) / len(of_videos)
        assert metrics["care/temporal/acc_ordered"] == pytest.approx(ordered, abs=1e-6)
        shuffled = sum(accuracies.values()) / len(accuracies)
        assert metrics["care/temporal/acc_shuffled"] == pytest.approx(shuffled, abs=1e-6)
        assert 0 <= metrics["care/temporal/vacuous_share"] <= metrics["care/temporal/pass_share"] <= 1
        # From one token to the response limit each.
        assert len(accuracies) <= metrics["care/temporal/tokens_total"] <= len(accuracies) * 64
        assert metrics["care/temporal/seconds"] > 0


def test_the_temporal_bonus_follows_from_the_logged_accuracies(whole):
    for step in whole.steps:
        rows = whole.rollouts(step)
        for uid in {row["uid"] for row in rows}:
            group = [row for row in rows if row["uid"] == uid]
            shuffled = [row["acc_shuffled"] for row in group if row["acc_shuffled"] is not None]
            ordered = sum(row["acc"] for row in group) / len(group)
            passes = bool(shuffled) and ordered >= 0.8 * sum(shuffled) / len(shuffled)
            for row in group:
                expected = 0.3 if passes and row["acc"] > 0.1 else 0.0
                assert row["temporal_bonus"] == pytest.approx(expected, abs=1e-6), row


def test_shaped_rewards_differ_from_raw_scores(whole):
    assert any(m["critic/rewards/mean"] != m["critic/score/mean"] for m in whole.steps.values())


def test_saved_state_equals_a_replay_of_the_rollout_log(whole):
    for step in (2, 4):
        competence = whole.replay(step)
        assert whole.state(step)["competence"] == pytest.approx([competence], abs=1e-6)
        assert whole.steps[step]["care/competence"] == pytest.approx(competence, abs=1e-6)


def test_a_killed_run_goes_on_as_if_nothing_had_happened(whole, resumed):
    assert sorted(resumed.steps) == [3, 4]
    for step in (1, 2, 3, 4):
        assert [(r["prompt_key"], r["session"], r["response"]) for r in resumed.rollouts(step)] == [
            (r["prompt_key"], r["session"], r["response"]) for r in whole.rollouts(step)
        ]
    state, expected = resumed.state(4), whole.state(4)
    assert state["updates"] == expected["updates"] == 4
    assert state["competence"] == pytest.approx(expected["competence"], abs=1e-6)
    for step in (3, 4):
        for name in ("care/competence", "critic/rewards/mean", "critic/score/mean", "response_length/mean"):
            assert resumed.steps[step][name] == pytest.approx(whole.steps[step][name], abs=1e-6)


def test_a_dead_reward_worker_is_replaced(resumed):
    assert "a reward worker died and was started anew" in resumed.log
    assert resumed.steps[4]["care/reward_errors"] == 0
    assert len(resumed.rollouts(4)) == 16 * 4


def test_naive_leaves_rewards_as_they_are(naive):
    assert sorted(naive.steps) == [1, 2]
    for metrics in naive.steps.values():
        for part in ("mean", "max", "min"):
            assert metrics[f"critic/rewards/{part}"] == metrics[f"critic/score/{part}"]
        assert metrics["critic/score/max"] > 0
        assert "care/competence" not in metrics
    assert not list(naive.folder.glob("global_step_*/care_state.json"))


def test_two_workers_agree_with_their_rollouts_and_leave_the_reference(naive):
    for metrics in naive.steps.values():
        assert metrics["training/rollout_probs_diff_max"] < FP32_AGREEMENT
    # The reference policy stays where the actor was at the start.
    assert naive.steps[1]["actor/kl_loss"] == pytest.approx(0, abs=1e-6)
    assert naive.steps[2]["actor/kl_loss"] > 1e-5


def test_asynchronous_run_shapes_every_batch(asynchronous):
    assert sorted(asynchronous.steps) == [1, 2, 3]
    for step, metrics in asynchronous.steps.items():
        assert metrics["care/competence"] == pytest.approx(asynchronous.replay(step), abs=1e-6)
    [saved] = asynchronous.state(3)["competence"]
    assert saved == pytest.approx(asynchronous.steps[3]["care/competence"], abs=1e-6)


def test_agreement_tells_old_weights_from_new(asynchronous):
    """A batch generated before the update that precedes it differs: the agreement of the other runs means something."""
    steps = asynchronous.steps.values()
    agreement = {"fresh": [], "stale": []}
    for metrics in steps:
        age = "stale" if metrics["training/off_policy/trajectory_staleness/max"] else "fresh"
        agreement[age].append(metrics["training/rollout_probs_diff_max"])
    assert max(agreement["fresh"]) < FP32_AGREEMENT
    assert min(agreement["stale"]) > 1e-3


def test_the_analysis_commands_read_the_run(whole, tmp_path):
    """replay, report, calibrate and simulate on what a run leaves behind."""
    published, own = asdict(CareConfig()), asdict(whole.constants())
    constants = ",".join(f"{name}={value}" for name, value in own.items() if value != published[name])
    logged, care, alp = call(
        "replay", whole.folder, "--rule", "logged", "--rule", f"care:{constants}", "--rule", "alp:beta=1e-3"
    )["rules"]
    assert alp["totals"]["bonus_right"] < 0
    for row, expected in zip(care["series"], logged["series"], strict=True):
        # What the run was given is what the rule gives on its rollouts.
        assert row["bonus"] == pytest.approx(expected["bonus"], abs=1e-5)
        assert row["care/competence"] == pytest.approx(whole.steps[int(row["step"])]["care/competence"], abs=1e-6)

    call("report", whole.folder, "--out", tmp_path / "report")
    [page] = (tmp_path / "report").glob("*.html")
    assert whole.folder.name in page.read_text() and list((tmp_path / "report").rglob("*.png"))

    rows = whole.rollouts(1)
    num_prompts = len({row["uid"] for row in rows})
    found = call("calibrate", "--from-run", whole.folder, "--prompts", num_prompts, "--steps", 50)
    assert found["prompts"] == num_prompts
    assert found["pass_rate"] == pytest.approx(sum(row["acc"] for row in rows) / len(rows), abs=1e-6)

    simulated = call("simulate", "--like", whole.folder, "--rule", "care", "--seeds", 1, "--workers", 1,
                     "--no-sensitivity", "--set", "num_steps=5")  # fmt: skip
    lengths = [row["length"] for step in whole.steps for row in whole.rollouts(step)]
    assert simulated["model"]["initial_length"] == pytest.approx(sum(lengths) / len(lengths), rel=1e-4)


def call(*arguments):
    """What a command of ``verl-care`` prints as JSON."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)
