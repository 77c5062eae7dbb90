"""Looks at config, data and model before verl starts Ray, so that a mistake ends in one line without tracebacks.

A Hydra callback; a recipe names it once::

    hydra:
      callbacks:
        care_preflight:
          _target_: verl_care.data.preflight.Preflight
"""

from __future__ import annotations

import os
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, ListConfig, OmegaConf

from verl_care.config import load_config
from verl_care.data.records import DataError, MissingDataError, check_file, make_command_of, missing_file
from verl_care.data.val_sets import command_for
from verl_care.shaping import list_rules


def _files(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(file) for file in value] if isinstance(value, ListConfig) else [str(value)]


def check_run(config: DictConfig) -> None:
    """Checks what a run reads from disk: data files, their records and the model's folder.

    Args:
        config: verl's whole config.

    Raises:
        DataError: something is missing or faulty; one line, with the remedy.
    """
    care = OmegaConf.select(config, "data.care")
    check_media = OmegaConf.select(config, "data.care.check_media", default=True)
    for name in ("train_files", "val_files"):
        seen: dict[str, tuple[int, str]] = {}
        for path in _files(OmegaConf.select(config, f"data.{name}")):
            if "://" in path:
                continue
            if not os.path.exists(path):
                raise missing_file(path, command_for(care, path))
            check_file(path, seen, check_media=check_media)
    model = OmegaConf.select(config, "actor_rollout_ref.model.path")
    if isinstance(model, str) and os.path.isabs(model) and not os.path.isdir(model):
        command = make_command_of(model)
        remedy = f"make it with: {command}" if command else "set actor_rollout_ref.model.path"
        raise MissingDataError(f"{model}: no such model folder; {remedy}")


def check_hook(config: DictConfig) -> None:
    """Checks the ``care:`` node, and that a trainer of ours stands behind a reward manager of ours.

    Args:
        config: verl's whole config.

    Raises:
        DataError: a bad ``care:`` node, or a trainer under which the manager's shaping would never run.
    """
    try:
        load_config(config.get("care"))
    except ValueError as error:
        raise DataError(str(error)) from None
    manager = OmegaConf.select(config, "reward.reward_manager.name")
    mode = OmegaConf.select(config, "trainer.v1.trainer_mode", default="care_sync")
    use_v1 = OmegaConf.select(config, "trainer.use_v1", default=True)
    if manager in list_rules() and not (use_v1 and str(mode).startswith("care_")):
        raise DataError(
            f"reward.reward_manager.name={manager} shapes rewards in our trainers only; set "
            f"trainer.v1.trainer_mode=care_sync and trainer.use_v1=True; found {mode} and {use_v1}"
        )


class Preflight(Callback):
    """Runs ``check_hook`` and ``check_run`` before the job; a mistake ends the process with its line and status 1."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            check_hook(config)
            check_run(config)
        except DataError as error:
            # Hydra turns an exception of a callback into a warning and goes on; it lets SystemExit through.
            raise SystemExit(f"error: {error}") from None

    on_multirun_start = on_run_start
