"""Ends a run whose rollout side is lost, which verl would not notice.

In verl 0.9.1 the prompts of a dead agent loop worker stay ``running``, and the trainer waits for them without end; a
dead rollout server fails the sessions that it is given, one in so many for the rest of the run. Neither is started
anew, so the run ends, and goes on from its last checkpoint. Its asynchronous trainers draw another prompt for each one
that fails, without end where all do.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.exceptions import RayActorError

INTERVAL_SECONDS = 5.0
"""Seconds between two looks. A dead process is found at the next look but one."""


MAX_FAILED_BATCHES = 3
"""Batches' worth of prompts that may fail one after another without one that is answered."""


class DeadWorkerError(RuntimeError):
    """A process that the run cannot go on without has died; the message names it."""


class RolloutError(RuntimeError):
    """Prompt after prompt fails; the message says how many."""


class Liveness:
    """Asks actors now and then whether they live, without waiting for the answer.

    Args:
        actors: gives the actors by name at every look.
    """

    def __init__(self, actors: Callable[[], Mapping[str, Any]]) -> None:
        self._actors = actors
        self._asked: dict[Any, str] = {}
        self._next = time.monotonic()

    def check(self) -> None:
        """Looks, if it is time to.

        Raises:
            DeadWorkerError: one has died.
        """
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + INTERVAL_SECONDS
        answered, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0) if self._asked else ([], [])
        for answer in answered:
            name = self._asked.pop(answer)
            try:
                ray.get(answer)
            except RayActorError as error:
                reason = str(error).splitlines()[0]
                raise DeadWorkerError(
                    f"{name} has died, and the responses it was at with it: {reason} "
                    "Start the run again: it goes on from its last checkpoint."
                ) from None
        waiting = set(self._asked.values())
        # A busy actor answers late, and is not asked again meanwhile.
        self._asked |= {
            actor.__ray_ready__.remote(): name for name, actor in self._actors().items() if name not in waiting
        }


def rollout_actors(trainer: Any) -> dict[str, Any]:
    """Agent loop workers, rollout servers and load balancers of a V1 trainer by name, those that it has by now."""
    actors: dict[str, Any] = {}
    manager = getattr(trainer, "agent_loop_manager", None)
    for number, worker in enumerate(getattr(manager, "agent_loop_workers", ())):
        actors[f"agent loop worker {number}"] = worker
    for place, servers in enumerate(trainer._rollout_server_managers()):
        for address, server in zip(servers.server_addresses, servers.server_handles, strict=True):
            actors[f"rollout server {address}"] = server
        actors[f"load balancer {place} of the rollout servers"] = servers.global_load_balancer
    return actors


class Failures:
    """Counts the prompts that fail one after another.

    Args:
        limit: of them; one more is too many.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._failed = self._answered = 0

    def count(self, failed: int, answered: int) -> None:
        """Counts one look of the replay buffer.

        Args:
            failed: prompts that have failed since the look before.
            answered: prompts that are answered and not yet trained on.

        Raises:
            RolloutError: more than the limit have failed since one was answered.
        """
        self._failed = failed + (self._failed if answered <= self._answered else 0)
        self._answered = answered
        if self._failed > self._limit:
            raise RolloutError(
                f"{self._failed} prompts failed one after another and none was answered: see the errors of their "
                "sessions above; verl-care doctor and data.care.check_media=true look for what may be wrong"
            )


def watch_rollouts(trainer: Any) -> None:
    """Lets a V1 trainer look at its rollout side whenever its replay buffer waits for responses or drops failed ones.

    A buffer of one's own (``trainer.v1.sampler.custom_sampler``) that does not do so in verl's way is left alone.
    """
    buffer = trainer.replay_buffer
    if not (hasattr(buffer, "_wait_for_next_poll") and hasattr(buffer, "_evict_terminal_groups")):
        return
    liveness = Liveness(lambda: rollout_actors(trainer))
    failures = Failures(MAX_FAILED_BATCHES * trainer.config.data.train_batch_size)
    wait, evict = buffer._wait_for_next_poll, buffer._evict_terminal_groups

    @functools.wraps(wait)
    def watched_wait(*args: Any, **kwargs: Any) -> float:
        liveness.check()
        return wait(*args, **kwargs)

    @functools.wraps(evict)
    def watched_evict(global_steps: int, partition_id: str, reasons: Any) -> Any:
        if partition_id != "val":
            # verl's reasons: stale, filtered, failed, and a count of the filtered.
            failures.count(len(reasons[2]), len(buffer.finished_keys[partition_id]))
        return evict(global_steps, partition_id, reasons)

    buffer._wait_for_next_poll, buffer._evict_terminal_groups = watched_wait, watched_evict
