"""Hands words of the config to processes that see no ``care:`` node; a Hydra callback that a recipe names once::

hydra:
  callbacks:
    care_environment:
      _target_: verl_care.environment.RunEnvironment
"""

from __future__ import annotations

from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from verl_care.workers.positions import ENV_NAME


class RunEnvironment(Callback):
    """Puts ``care.video.positions`` into Ray's runtime environment, where rollout engines find it on every machine."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Add to the config; verl hands the node to ``ray.init`` without resolving it, so that YAML cannot say this."""
        positions = OmegaConf.select(config, "care.video.positions")
        if positions is not None:
            node = f"ray_kwargs.ray_init.runtime_env.env_vars.{ENV_NAME}"
            OmegaConf.update(config, node, str(positions), force_add=True)
