"""Reward workers that come back: Ray starts a dead one anew and runs again what it was scoring.

verl 0.9.1 starts its reward workers without restarts and picks one at random for each session
(``experimental/agent_loop/agent_loop.py``), so that a dead one fails one session in ``reward.num_workers`` for the rest
of the run, in silence.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from verl.experimental.reward_loop.reward_loop import RewardLoopManager, RewardLoopWorker

logger = logging.getLogger(__name__)
logger.setLevel(os.getenv("VERL_LOGGING_LEVEL", "INFO"))

MAX_RETRIES = 3
"""Times that a response is scored again whose worker died over it; then its session fails, as one that raises does."""


class RestartedRewardLoopWorker(RewardLoopWorker):
    """verl's reward worker, which says so when it takes the place of a dead one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if ray.get_runtime_context().was_current_actor_reconstructed:
            logger.warning("a reward worker died and was started anew; what it was scoring is scored again")


class RestartingRewardLoopManager(RewardLoopManager):
    """verl's manager with workers that Ray restarts."""

    def _init_reward_loop_workers(self) -> None:
        # A worker starts anew with the arguments of the dead one, and Ray 2.60 drops those that it has put into the
        # object store by itself: keep our own reference to the config.
        self._config_ref = ray.put(self.config)
        worker_class = ray.remote(max_restarts=-1, max_task_retries=MAX_RETRIES)(RestartedRewardLoopWorker)
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
        self.reward_loop_workers = [
            worker_class.options(
                name=f"reward_loop_worker_{number}",
                scheduling_strategy=NodeAffinitySchedulingStrategy(nodes[number % len(nodes)], soft=True),
            ).remote(self._config_ref, self.reward_router_address)
            for number in range(self.config.reward.num_workers)
        ]


@contextmanager
def restarting_reward_workers() -> Iterator[None]:
    """Within it, a V1 trainer that sets itself up takes ``RestartingRewardLoopManager``.

    The trainer names verl's class in the middle of ``_setup`` and takes neither another one nor options for its actors.
    """
    # Here and not above: the workers import this module, and have no use for a trainer.
    from verl.trainer.ppo.v1 import trainer_base

    stock = trainer_base.RewardLoopManager
    trainer_base.RewardLoopManager = RestartingRewardLoopManager
    try:
        yield
    finally:
        trainer_base.RewardLoopManager = stock
