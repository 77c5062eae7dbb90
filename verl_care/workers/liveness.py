"""Ends a run that has lost a process of its rollout side, which verl would not notice.

In verl 0.9.1 the prompts of a dead agent loop worker stay ``running``, and the trainer waits for them without end; a
dead rollout server fails the sessions that it is given, one in so many for the rest of the run. Neither is started
anew, so the run ends, and goes on from its last checkpoint.
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


class DeadWorkerError(RuntimeError):
    """A process that the run cannot go on without has died; the message names it."""


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


def watch_rollouts(trainer: Any) -> None:
    """Lets a V1 trainer look at its rollout side whenever its replay buffer waits for responses.

    A buffer of one's own (``trainer.v1.sampler.custom_sampler``) that does not wait in verl's way is left alone.
    """
    wait = getattr(trainer.replay_buffer, "_wait_for_next_poll", None)
    if wait is None:
        return
    liveness = Liveness(lambda: rollout_actors(trainer))

    @functools.wraps(wait)
    def watched(*args: Any, **kwargs: Any) -> float:
        liveness.check()
        return wait(*args, **kwargs)

    trainer.replay_buffer._wait_for_next_poll = watched
