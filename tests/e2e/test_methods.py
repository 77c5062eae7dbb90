"""Token selections, SIRI, lifecycles and BAPO through `main_ppo`, all in one run."""

from __future__ import annotations

import json

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

RESPONSE_LENGTH, STEPS = 40, 3


@pytest.fixture(scope="module")
def run(main_ppo, tmp_path_factory):
    return main_ppo(
        tmp_path_factory.mktemp("methods"),
        "care.token_selection=video_ktr+capo",
        "care.rollout_log.token_samples=1000",
        "care.siri.enabled=true",
        "care.siri.schedule=stair",
        "care.siri.min_tokens=10",
        "care.siri.period=2",
        "care.favchat.enabled=true",
        "care.bapo.enabled=true",
        "data.train_batch_size=8",
        "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        f"trainer.total_training_steps={STEPS}",
        f"trainer.save_freq={STEPS}",
        # Two ranks: passes and bounds are theirs together.
        "trainer.n_gpus_per_node=2",
        "ray_kwargs.ray_init.num_cpus=8",
    )


def test_budgets_end_responses(run):
    budgets = [run.steps[step]["care/siri/budget_tokens"] for step in range(1, STEPS + 1)]
    assert budgets == [RESPONSE_LENGTH, 10, RESPONSE_LENGTH]
    assert max(row["length"] for row in run.rollouts(2)) == 10
    assert max(row["length"] for row in run.rollouts(1)) > 10


def test_every_update_has_bounds_of_its_own_search(run):
    for metrics in run.steps.values():
        assert 0.6 <= metrics["actor/bapo/clip_low"] <= 0.9 and 1.2 <= metrics["actor/bapo/clip_high"] <= 3.0


def test_tokens_are_scored_for_every_medium(run, assets):
    for row in run.rollouts(1):
        medium = assets.medium[row["prompt_key"]]
        assert (row["visual_scores"] is not None) == (medium in ("video", "image"))
        assert (row["temporal_scores"] is not None) == (medium == "video")
        # Tokens that CAPO rejects are taken off Video-KTR's union.
        for bits in row["token_signals"]:
            assert not bits & 8 or bits & 7
    for metrics in run.steps.values():
        assert 0 < metrics["care/tokens/selected_share"] < 0.7
        assert 0 < metrics["timing_s/care_token_scores"] < metrics["timing_s/old_log_prob"]


def test_lifecycles_are_saved_with_the_checkpoint(run):
    saved = json.loads((run.folder / f"global_step_{STEPS}" / "care_lifecycle.json").read_text())["state"]
    keys = {row["prompt_key"] for step in range(1, STEPS + 1) for row in run.rollouts(step)}
    assert set(saved) == keys
    for key in keys:
        accuracies = [row["acc"] for row in run.rollouts(1) if row["prompt_key"] == key]
        if accuracies and saved[key][1] == 1:
            mean = sum(accuracies) / len(accuracies)
            variance = sum((value - mean) ** 2 for value in accuracies) / len(accuracies)
            assert saved[key][0] == pytest.approx(4 * variance, abs=1e-5)
