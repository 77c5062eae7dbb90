"""Looks at data and model before verl starts Ray, so that a mistake ends in one line instead of workers' tracebacks.

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

from verl_care.data.records import DataError, MissingDataError, check_file, make_command_of, missing_file


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
    make_command = OmegaConf.select(config, "data.care.make_command")
    check_media = OmegaConf.select(config, "data.care.check_media", default=True)
    for name in ("train_files", "val_files"):
        seen: dict[str, tuple[int, str]] = {}
        for path in _files(OmegaConf.select(config, f"data.{name}")):
            if "://" in path:
                continue
            if not os.path.exists(path):
                raise missing_file(path, make_command)
            check_file(path, seen, check_media=check_media)
    model = OmegaConf.select(config, "actor_rollout_ref.model.path")
    if isinstance(model, str) and os.path.isabs(model) and not os.path.isdir(model):
        command = make_command_of(model)
        remedy = f"make it with: {command}" if command else "set actor_rollout_ref.model.path"
        raise MissingDataError(f"{model}: no such model folder; {remedy}")


class Preflight(Callback):
    """Runs ``check_run`` before the job; on a mistake prints its line and ends the process with status 1."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            check_run(config)
        except DataError as error:
            # Hydra turns an exception of a callback into a warning and goes on; it lets SystemExit through.
            raise SystemExit(f"error: {error}") from None

    on_multirun_start = on_run_start
