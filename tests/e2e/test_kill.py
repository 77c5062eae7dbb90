"""A run killed over and over, at seeded random moments, goes on every time as if it never had been.

All kills hit one run, each start of which goes on where the kill before it left off: `-k` may choose any of them, and
the last test takes what they left to its end. About twenty minutes on two free cores.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 60
MOMENTS = ("setting up", "in a step", "saving", "saved")
VICTIMS = {
    "all": "",
    "driver": "",
    "task runner": "TaskRunner",
    "actor": "WorkerDict",
    "agent loop": "AgentLoopWorker",
    "rollout server": "HFServer",
    "reward worker": "RewardLoopWorker",
}
"""Who is killed, and what its process's title holds."""

KILLS = [(moment, victim) for moment in MOMENTS for victim in ("all", "driver", "task runner", "actor")]
KILLS += [
    ("in a step", "agent loop"),
    ("saving", "agent loop"),
    ("in a step", "rollout server"),
    ("saved", "rollout server"),
]
FIRST_REWARD_WORKER = dict(zip(KILLS[4:14:3], MOMENTS, strict=True))
"""Kills before which the run loses its reward worker, at that moment, and goes on."""
random.Random(0).shuffle(KILLS)

GONE_WITHIN = 60
"""Seconds after which nothing may be left of a run that has lost a process; Ray's agents have their own time."""

SMALL = ("data.train_batch_size=8", f"trainer.total_training_steps={STEPS}", "trainer.save_freq=1")


def saved_step(folder: Path) -> int:
    """Step of the last complete checkpoint, 0 where there is none."""
    tracker = folder / "latest_checkpointed_iteration.txt"
    return int(tracker.read_text() or 0) if tracker.exists() else 0


def saving_step(folder: Path) -> int:
    """Step of the last checkpoint that was begun."""
    return max((int(path.name.rpartition("_")[2]) for path in folder.glob("global_step_*")), default=0)


class Killer:
    """Watches a run and kills one process after another, each a random while after its moment has come."""

    def __init__(self, folder: Path, kills: list[tuple[str, str]], kill_worker) -> None:
        self.folder, self.kill_worker = folder, kill_worker
        self.left = list(kills)
        self.rng = random.Random(str(kills))
        self.killed_at = 0.0
        self.from_step = 0
        self._aim(0)

    def _aim(self, last_step: int) -> None:
        self.came: float | None = None
        self.step, self.saved = last_step, saved_step(self.folder)
        longest = {"setting up": 25, "in a step": 2.0, "saving": 0.3, "saved": 0.5}[self.left[0][0]]
        self.delay = self.rng.uniform(0, longest)

    def _has_come(self, moment: str, last_step: int) -> bool:
        if moment == "in a step":
            return last_step > self.step
        if moment == "saving":
            return saving_step(self.folder) > max(self.saved, saved_step(self.folder))
        return moment == "setting up" or saved_step(self.folder) > self.saved

    def __call__(self, driver: int, last_step: int) -> bool:
        if not self.left or last_step < self.from_step:
            return False
        moment, victim = self.left[0]
        if self.came is None and self._has_come(moment, last_step):
            self.came = time.monotonic()
        if self.came is None or time.monotonic() < self.came + self.delay:
            return False
        if victim == "driver":
            psutil.Process(driver).kill()
        elif victim != "all":
            try:
                self.kill_worker(driver, VICTIMS[victim])
            except AssertionError:
                return False  # Not there yet: at the next look.
        self.killed_at = time.monotonic()
        del self.left[0]
        if self.left:
            # Two steps on, the reward worker that has just been killed has been needed again.
            self.from_step = last_step + 2
            self._aim(self.from_step)
        return victim == "all"


@pytest.fixture(scope="module")
def whole(main_ppo, tmp_path_factory):
    """The same run, never killed."""
    return main_ppo(tmp_path_factory.mktemp("whole"), *SMALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Of the run that is killed."""
    return tmp_path_factory.mktemp("killed")


def assert_went_as(whole, run) -> None:
    """The run's steps, those before its last checkpoint in the log, and its state are those of the whole run."""
    for step, metrics in run.steps.items():
        for name in [name for name in whole.steps[step] if name.startswith("care/") and "seconds" not in name]:
            assert metrics[name] == pytest.approx(whole.steps[step][name], abs=1e-6), (step, name)
    saved = saved_step(run.folder)
    for step in range(1, saved + 1):
        for row, expected in zip(run.rollouts(step), whole.rollouts(step), strict=True):
            for name in ("prompt_key", "session", "response"):
                assert row[name] == expected[name], step
            assert row["reward"] == pytest.approx(expected["reward"], abs=1e-6), step
    if saved:
        assert run.state(saved)["updates"] == saved
        assert run.state(saved)["competence"] == pytest.approx([run.replay(saved)], abs=1e-6)


@pytest.mark.parametrize("kill", KILLS, ids=[f"{victim}, {moment}" for moment, victim in KILLS])
def test_killed(main_ppo, kill_worker, whole, folder, kill):
    kills = [kill]
    if kill in FIRST_REWARD_WORKER:
        kills.insert(0, (FIRST_REWARD_WORKER[kill], "reward worker"))
    killer = Killer(folder, kills, kill_worker)
    before = saved_step(folder)
    run = main_ppo(folder, *SMALL, watch=killer, must_succeed=False, gone_within=GONE_WITHIN)
    gone = "" if run.gone_at is None else f"; all gone after {run.gone_at - killer.killed_at:.0f} s"
    print(f"{' then '.join(' '.join(k) for k in kills)}: steps {before} -> {saved_step(folder)}{gone}", flush=True)
    assert not killer.left, f"ended before {killer.left}\n{run.log[-4000:]}"
    # Without one of its processes the run ends, and says so; it never goes on.
    assert run.returncode != 0
    if run.returncode is not None:
        assert run.gone_at - killer.killed_at < GONE_WITHIN
    if len(kills) > 1:
        assert "a reward worker died and was started anew" in run.log
    assert_went_as(whole, run)


def test_at_the_end_nothing_is_lost(main_ppo, whole, folder):
    run = main_ppo(folder, *SMALL)
    assert saved_step(folder) == STEPS and max(run.steps) == STEPS
    assert_went_as(whole, run)
