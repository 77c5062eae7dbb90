"""200 steps of the demo with sessions, scores and reward workers that fail: it ends, and leaves nothing behind."""

from __future__ import annotations

import os
import random
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(7200)]

STEPS = 200
KILL_EVERY = 25
FAULTS = Path(__file__).with_name("planted_faults.py")


def open_files(driver: int) -> int:
    """File handles of a run's driver and all that it started."""
    count = 0
    for process in [psutil.Process(driver), *psutil.Process(driver).children(recursive=True)]:
        try:
            count += process.num_fds()
        except psutil.NoSuchProcess:
            continue
    return count


def test_a_long_run_with_faults_ends_and_leaves_nothing(main_ppo, kill_worker, tmp_path):
    loops = tmp_path / "loops.yaml"
    loops.write_text("- name: faulty_agent\n  _target_: planted_faults.FaultyAgentLoop\n")
    before = set(os.listdir("/dev/shm"))
    handles: dict[int, int] = {}
    kill_at = [step + random.Random(step).randrange(KILL_EVERY) for step in range(KILL_EVERY, STEPS - 1, KILL_EVERY)]

    def watch(driver: int, last_step: int) -> bool:
        if last_step and last_step not in handles:
            handles[last_step] = open_files(driver)
        if kill_at and last_step >= kill_at[0]:
            kill_worker(driver, "RewardLoopWorker")
            del kill_at[0]
        return False

    run = main_ppo(
        tmp_path,
        f"trainer.total_training_steps={STEPS}",
        f"trainer.save_freq={STEPS}",
        "trainer.total_epochs=1000",
        f"actor_rollout_ref.rollout.agent.agent_loop_config_path={loops}",
        "actor_rollout_ref.rollout.agent.default_agent_loop=faulty_agent",
        f"reward.custom_reward_function.path={FAULTS}",
        watch=watch,
        environ={"PYTHONPATH": str(FAULTS.parent)},
        seconds=3600,
    )
    assert sorted(run.steps) == list(range(1, STEPS + 1)) and not kill_at
    # The faults were met and counted.
    assert "planted: this session fails" in run.log
    assert any(metrics["care/reward_errors"] > 0 for metrics in run.steps.values())
    assert any(metrics["care/rollouts/missing"] > 0 for metrics in run.steps.values())
    assert run.log.count("a reward worker died and was started anew") > 0
    steps = sorted(handles)
    early, late = handles[steps[len(steps) // 5]], handles[steps[-1]]
    print(f"file handles: {early} at step {steps[len(steps) // 5]}, {late} at step {steps[-1]}")
    assert late < 1.2 * early
    assert set(os.listdir("/dev/shm")) <= before
