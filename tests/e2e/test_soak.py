"""200 steps of the demo with sessions, scores and reward workers that fail: it ends, and leaves nothing behind."""

from __future__ import annotations

import random
import re
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3600)]

STEPS = 200
KILL_EVERY = 25
FAULTS = Path(__file__).with_name("planted_faults.py")


class Watch:
    """Notes after every tenth step what a run holds, and kills its reward worker at random steps."""

    def __init__(self, kill_worker) -> None:
        self.kill_worker = kill_worker
        rng = random.Random(0)
        self.kill_at = [step + rng.randrange(KILL_EVERY) for step in range(KILL_EVERY, STEPS - KILL_EVERY, KILL_EVERY)]
        self.held: dict[int, dict[str, float]] = {}
        self.segments: set[str] = set()

    def __call__(self, driver: int, last_step: int) -> bool:
        if last_step and last_step % 10 == 0 and last_step not in self.held:
            self.held[last_step] = self._look(driver)
        if self.kill_at and last_step >= self.kill_at[0]:
            self.kill_worker(driver, "RewardLoopWorker")
            del self.kill_at[0]
        return False

    def _look(self, driver: int) -> dict[str, float]:
        process = psutil.Process(driver)
        temp_dir = Path(process.environ()["TMPDIR"])
        held = {"processes": 0, "file handles": 0, "MiB": 0.0}
        for each in [process, *process.children(recursive=True)]:
            try:
                held["file handles"] += each.num_fds()
                held["MiB"] += each.memory_info().rss / 2**20
                held["processes"] += 1
                mapped = (Path("/proc") / str(each.pid) / "maps").read_text().splitlines()
            except (psutil.NoSuchProcess, OSError):
                continue
            self.segments |= {line.split()[5] for line in mapped if "/dev/shm/" in line}
        # Ray's own logs and sockets aside, and the empty lock that verl leaves for every folder of a checkpoint.
        files = [path for path in temp_dir.rglob("*") if path.is_file() and "session_" not in str(path)]
        held["temp files"] = sum(1 for path in files if not re.fullmatch(r"ckpt_[0-9a-f]{8}\.lock", path.name))
        held["shared segments"] = sum(1 for segment in self.segments if Path(segment).exists())
        return held


def test_a_long_run_with_faults_ends_and_leaves_nothing(main_ppo, kill_worker, tmp_path):
    loops = tmp_path / "loops.yaml"
    loops.write_text("- name: faulty_agent\n  _target_: planted_faults.FaultyAgentLoop\n")
    watch = Watch(kill_worker)
    run = main_ppo(
        tmp_path,
        f"trainer.total_training_steps={STEPS}",
        f"trainer.save_freq={STEPS // 4}",
        "data.train_batch_size=4",
        "care.session_timeout_seconds=3",
        f"actor_rollout_ref.rollout.agent.agent_loop_config_path={loops}",
        "actor_rollout_ref.rollout.agent.default_agent_loop=faulty_agent",
        f"reward.custom_reward_function.path={FAULTS}",
        watch=watch,
        environ={"PYTHONPATH": str(FAULTS.parent)},
        seconds=3000,
        gone_within=60,
    )
    assert sorted(run.steps) == list(range(1, STEPS + 1)) and not watch.kill_at
    assert run.state(STEPS)["competence"] == pytest.approx([run.replay(STEPS)], abs=1e-6)
    # The faults were met, named and counted.
    for fault in (
        "planted: this session fails",
        "planted: this response cannot be scored",
        "no response after 3 s (care.session_timeout_seconds)",
        "the rollout engine returned no tokens",
        "a reward worker died and was started anew",
    ):
        assert fault in run.log, fault
    rows = [row for step in run.steps for row in run.rollouts(step)]
    missing = 1 - len(rows) / (STEPS * 4 * 4)
    counted = [metrics["care/rollouts/missing"] for metrics in run.steps.values()]
    assert sum(counted) / STEPS == pytest.approx(missing, abs=1e-4) and missing > 0
    assert any(metrics["care/reward_errors"] > 0 for metrics in run.steps.values())
    # Only special tokens; more tokens than there may be.
    assert any(row["response"] == "" and row["unparsed"] for row in rows)
    assert max(row["length"] for row in rows) == 40

    steps = sorted(watch.held)
    early, late = watch.held[steps[1]], watch.held[steps[-1]]
    print(f"step {steps[1]}: {early}; step {steps[-1]}: {late}; {missing:.1%} of the rollouts missing", flush=True)
    assert late["processes"] <= early["processes"]
    assert late["file handles"] < 1.1 * early["file handles"]
    assert late["temp files"] <= early["temp files"]
    assert late["shared segments"] <= early["shared segments"]
    assert not [segment for segment in watch.segments if Path(segment).exists()]
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]
