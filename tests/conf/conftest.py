import functools

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig


@pytest.fixture(scope="session")
def compose_job():
    """Composes verl's own `ppo_trainer` with overrides, as `main_ppo` does on its command line."""
    GlobalHydra.instance().clear()

    @functools.cache
    def composed(*overrides: str) -> DictConfig:
        # Another test may have cleared it.
        if not GlobalHydra.instance().is_initialized():
            initialize_config_module("verl.trainer.config", version_base=None)
        return compose("ppo_trainer", overrides=list(overrides))

    yield lambda *overrides: composed(*overrides).copy()
    GlobalHydra.instance().clear()
