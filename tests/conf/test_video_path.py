"""The fast video path and its positions: on in every recipe, off with one word each."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

import verl_care.conf
from verl_care.environment import RunEnvironment
from verl_care.workers.agent_loop_worker import CareAgentLoopManager
from verl_care.workers.positions import ENV_NAME

RECIPES = sorted(
    path.stem
    for path in (Path(verl_care.conf.__path__[0]) / "recipe").glob("*.yaml")
    # Supervised ones have no rollouts; those for validation sets are added to another recipe.
    if not path.stem.startswith(("sft", "val_"))
)
MANAGER = f"{CareAgentLoopManager.__module__}.{CareAgentLoopManager.__qualname__}"


@pytest.mark.parametrize("recipe", RECIPES)
def test_on_in_every_recipe(recipe, compose_job):
    config = compose_job(f"+recipe={recipe}")
    assert config.actor_rollout_ref.rollout.agent.agent_loop_manager_class == MANAGER
    assert config.actor_rollout_ref.rollout.agent.default_agent_loop == "care_agent"
    assert config.care.video == {"once": True, "threads": 2, "positions": "seconds"}


@pytest.mark.parametrize("word", ["seconds", "stock"])
def test_rollout_engines_are_told_the_word_and_keep_the_rest_of_their_environment(word, compose_job):
    config = compose_job("+recipe=care_demo", f"care.video.positions={word}")
    RunEnvironment().on_run_start(config)
    environ = OmegaConf.to_container(config.ray_kwargs.ray_init.runtime_env.env_vars)
    assert environ == {"VERL_PLATFORM": "cpu", ENV_NAME: word}


def test_a_machine_without_an_environment_of_its_own_is_told_too(compose_job):
    config = compose_job("+recipe=care_video")
    RunEnvironment().on_run_start(config)
    assert config.ray_kwargs.ray_init.runtime_env.env_vars[ENV_NAME] == "seconds"


def test_hydra_runs_the_callback(compose_job):
    for recipe in ("care_video", "care_demo"):
        callbacks = OmegaConf.load(Path(verl_care.conf.__path__[0]) / "recipe" / f"{recipe}.yaml").hydra.callbacks
        targets = {callback._target_ for callback in callbacks.values()}
        assert f"{RunEnvironment.__module__}.{RunEnvironment.__qualname__}" in targets


@pytest.mark.parametrize(("word", "told"), [("seconds", None), ("stock", "seconds")])
def test_a_run_whose_parts_would_disagree_does_not_start(word, told, compose_job, monkeypatch):
    monkeypatch.delenv(ENV_NAME, raising=False)
    if told:
        monkeypatch.setenv(ENV_NAME, told)
    config = compose_job("+recipe=care_demo", f"care.video.positions={word}")
    with pytest.raises(ValueError, match=f"care.video.positions={word}.*runtime_env.env_vars.{ENV_NAME}={word}"):
        CareAgentLoopManager(config)
