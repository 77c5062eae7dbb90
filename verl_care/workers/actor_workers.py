"""verl's actor workers with what this package adds to them, and where they take the place of verl's own."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict
from typing import Any

import ray
from omegaconf import DictConfig, open_dict
from verl.experimental.separation.engine_workers import DetachActorWorker
from verl.workers.engine_workers import ActorRolloutRefWorker

from verl_care.config import Config
from verl_care.workers.bapo import CONFIG_KEY, BapoMixin
from verl_care.workers.counterfactual import CounterfactualMixin

logger = logging.getLogger(__name__)
logger.setLevel(os.getenv("VERL_LOGGING_LEVEL", "INFO"))


class CareActorWorker(CounterfactualMixin, BapoMixin, ActorRolloutRefWorker):
    """verl's actor worker with counterfactual passes and BAPO's bounds."""


class CareDetachActorWorker(CounterfactualMixin, BapoMixin, DetachActorWorker):
    """The same for ``separate_async``."""


def needs_own_worker(config: Config) -> bool:
    """Whether anything that is on runs inside the actor's worker."""
    passes = "video_ktr" in config.token_selections and set(config.video_ktr.signals) != {"entropy"}
    return passes or config.bapo.enabled


def install_workers(care: Config, config: DictConfig, role_worker_mapping: dict[Any, Any]) -> None:
    """Puts our actor worker in the place of verl's, where something needs it, and hands it its constants.

    Args:
        care: the ``care:`` node.
        config: the whole config; ``actor_rollout_ref`` gets BAPO's constants.
        role_worker_mapping: verl's, role -> Ray actor class; changed in place.

    Raises:
        ValueError: BAPO with a policy loss that does not read the bounds.
    """
    if not needs_own_worker(care):
        return
    if care.bapo.enabled:
        actor = config.actor_rollout_ref.actor
        mode = actor.policy_loss.get("loss_mode", "vanilla")
        if mode != "vanilla":
            raise ValueError(
                f"care.bapo.enabled: actor_rollout_ref.actor.policy_loss.loss_mode={mode}; bounds are for vanilla"
            )
        if actor.ppo_epochs == 1 and actor.ppo_mini_batch_size >= config.data.train_batch_size:
            logger.warning(
                "care.bapo.enabled has no effect: with one update a batch all ratios are 1; set "
                "actor_rollout_ref.actor.ppo_mini_batch_size below data.train_batch_size, or ppo_epochs above 1"
            )
        with open_dict(config):
            config.actor_rollout_ref[CONFIG_KEY] = asdict(care.bapo)
    for role, remote in role_worker_mapping.items():
        worker = remote.__ray_metadata__.modified_class
        if issubclass(worker, DetachActorWorker):
            role_worker_mapping[role] = ray.remote(CareDetachActorWorker)
        elif issubclass(worker, ActorRolloutRefWorker):
            role_worker_mapping[role] = ray.remote(CareActorWorker)
