"""A run that has lost a process of its rollout side ends."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import pytest

from verl_care.workers import liveness
from verl_care.workers.liveness import (
    DeadWorkerError,
    Failures,
    Liveness,
    RolloutError,
    rollout_actors,
    watch_rollouts,
)


@pytest.fixture
def workers(transfer_queue):
    import ray

    # Inside, so that Ray pickles it by value: its workers cannot import this file.
    class Worker:
        async def pid(self) -> int:
            return os.getpid()

    handles = [ray.remote(Worker).options(num_cpus=0).remote() for _ in range(4)]
    yield handles
    for handle in handles:
        ray.kill(handle)


def kill(worker) -> None:
    import ray

    os.kill(ray.get(worker.pid.remote()), signal.SIGKILL)


def look_until_it_raises(look) -> None:
    """The process is gone when kill returns, but Ray learns of it a moment later."""
    while True:
        look()


@pytest.mark.parametrize("dead", ["agent loop worker 1", "rollout server here:1", "load balancer 0"])
def test_a_dead_process_ends_the_wait_for_responses(workers, monkeypatch, dead):
    monkeypatch.setattr(liveness, "INTERVAL_SECONDS", 0.0)
    servers = SimpleNamespace(server_addresses=["here:1"], server_handles=[workers[1]], global_load_balancer=workers[2])
    trainer = SimpleNamespace(
        agent_loop_manager=SimpleNamespace(agent_loop_workers=[workers[3], workers[0]]),
        config=SimpleNamespace(data=SimpleNamespace(train_batch_size=1)),
        replay_buffer=SimpleNamespace(
            _wait_for_next_poll=lambda partition, last: last + 1, _evict_terminal_groups=lambda *args: args
        ),
        _rollout_server_managers=lambda: [servers],
    )
    watch_rollouts(trainer)
    wait = trainer.replay_buffer._wait_for_next_poll
    assert wait("train", 1.0) == wait("train", 1.0) == 2.0
    kill(workers[["agent loop worker 1", "rollout server here:1", "load balancer 0"].index(dead)])
    with pytest.raises(DeadWorkerError, match=f"^{dead}.* has died.*last checkpoint"):
        look_until_it_raises(lambda: wait("train", 1.0))


def test_a_busy_process_is_not_a_dead_one_and_is_asked_once(workers, monkeypatch):
    monkeypatch.setattr(liveness, "INTERVAL_SECONDS", 0.0)
    asked = []
    pending = SimpleNamespace(remote=lambda: asked.append(1) or workers[0].pid.remote())
    watched = Liveness(lambda: {"worker": SimpleNamespace(__ray_ready__=pending)})
    monkeypatch.setattr(liveness.ray, "wait", lambda refs, **_: ([], refs))
    for _ in range(5):
        watched.check()
    assert len(asked) == 1


def test_looks_are_seldom(monkeypatch):
    looks = []
    watched = Liveness(lambda: looks.append(1) or {})
    start = watched._next
    for seconds, looked in ((0, 1), (1, 1), (4.9, 1), (5.1, 2), (6, 2)):
        monkeypatch.setattr(liveness.time, "monotonic", lambda now=start + seconds: now)
        watched.check()
        assert len(looks) == looked


def test_failures_count_until_a_prompt_is_answered():
    failures = Failures(limit=4)
    # (failed, answered so far): the third look has an answer more, the fifth follows an update.
    for failed, answered in ((2, 1), (2, 1), (2, 2), (1, 2), (1, 0), (0, 0)):
        failures.count(failed, answered)
    with pytest.raises(RolloutError, match="^5 prompts failed"):
        failures.count(1, 0)


def test_a_trainer_before_its_agent_loops_has_none(transfer_queue):
    assert rollout_actors(SimpleNamespace(_rollout_server_managers=lambda: [])) == {}
