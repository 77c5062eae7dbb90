"""verl's own `main_ppo` with the real vLLM engine, on the CPU. `make test-vllm` installs it and runs this."""

from __future__ import annotations

import collections
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

import pytest

from verl_care import launch

pytestmark = [pytest.mark.vllm, pytest.mark.e2e, pytest.mark.timeout(600)]

AGREEMENT = 1e-4
WARM_UP = 1
ANNEALED = [
    "care.annealing.enabled=true",
    # After the first tokens the first step takes the likeliest alone; the second samples as if nothing were set.
    f"care.annealing.warm_up={WARM_UP}",
    "care.annealing.tau_max=1",
    "care.annealing.tau_min=1e-5",
    "care.annealing.decay=1e-3",
    "care.annealing.decay_growth=40000",
]


@dataclass(frozen=True)
class VllmRun:
    steps: dict[int, dict[str, float]]
    rollouts: dict[int, list[dict]]
    segments_left: set[str]
    """Shared memory through which weights went to the engine."""


def weight_segments() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("verl_weights_*")}


@pytest.fixture(scope="module")
def run(main_ppo, tmp_path_factory) -> VllmRun:
    """Two steps: the second one's rollouts come from weights that the first one's update made."""
    version = importlib.metadata.version("vllm")
    if "cpu" not in version:
        pytest.skip(f"needs vLLM's CPU backend (make test-vllm); found vllm {version}")
    before = weight_segments()
    try:
        done = main_ppo(
            tmp_path_factory.mktemp("vllm"),
            "actor_rollout_ref.rollout.name=vllm",
            "trainer.total_training_steps=2",
            *ANNEALED,
        )
        left = weight_segments() - before
    finally:
        # A sync that fails leaves its segment, and the trainer waits for ever.
        for name in weight_segments() - before:
            (Path("/dev/shm") / name).unlink(missing_ok=True)
    return VllmRun(steps=done.steps, rollouts={step: done.rollouts(step) for step in done.steps}, segments_left=left)


def test_vllm_answers_about_every_medium_and_care_shapes(run, assets):
    assert sorted(run.steps) == [1, 2]
    seen = {assets.medium[row["prompt_key"]] for rows in run.rollouts.values() for row in rows}
    assert seen == {"video", "image", "text"}
    for step, metrics in run.steps.items():
        assert len(run.rollouts[step]) == 16 * 4
        assert 0 < metrics["care/competence"] < 1 and metrics["care/reward_errors"] == 0
        assert metrics["care/response_length/mean"] > 0
        assert metrics["actor/grad_norm"] > 0


@pytest.mark.parametrize("step", [1, 2])
def test_the_engine_answers_with_the_actor_s_weights(run, step):
    assert run.steps[step]["training/rollout_probs_diff_max"] < AGREEMENT


def test_annealing_moves_what_is_sampled_by_the_step_s_schedule(run):
    """Responses to one prompt that begin alike go on alike where the likeliest token alone is taken.

    That the first step's log-probabilities are the actor's, too, says that they were taken before the scaling.
    """
    alike = {}
    for step, rows in run.rollouts.items():
        begun = collections.defaultdict(list)
        for row in rows:
            begun[row["prompt_key"], *row["response"].split()[:WARM_UP]].append(row["response"])
        alike[step] = [len(set(texts)) == 1 for texts in begun.values() if len(texts) > 1]
    assert len(alike[1]) >= 8 and all(alike[1])
    assert sum(alike[2]) < len(alike[2]) / 2


def test_nothing_is_left_behind(run, assets):
    assert run.segments_left == set()
    assert launch.processes_with(f"VERL_CARE_DEMO_DIR={assets.folder}") == []
