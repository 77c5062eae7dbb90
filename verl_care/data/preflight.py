"""Looks at config, data and model before verl starts Ray, so that a mistake ends in one line without tracebacks.

A Hydra callback; a recipe names it once::

    hydra:
      callbacks:
        care_preflight:
          _target_: verl_care.data.preflight.Preflight
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, ListConfig, OmegaConf

from verl_care.config import load_config
from verl_care.data.leakage import compare_files
from verl_care.data.records import DataError, MissingDataError, check_file, make_command_of, missing_file
from verl_care.data.supervised import check_supervised_file
from verl_care.data.val_sets import check_test_steps, command_for, is_test_row
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
    _check_model(config, "actor_rollout_ref.model.path")


def _check_model(config: DictConfig, key: str) -> None:
    model = OmegaConf.select(config, key)
    if isinstance(model, str) and os.path.isabs(model) and not os.path.isdir(model):
        command = make_command_of(model)
        remedy = f"make it with: {command}" if command else f"set {key}"
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


def check_test_sets(config: DictConfig) -> None:
    """Checks that verl validates at the steps at which test sets are to be read.

    Args:
        config: verl's whole config.

    Raises:
        DataError: a step without a validation; one line, with the remedy.
    """
    if not any(_has_test_rows(path) for path in _files(OmegaConf.select(config, "data.val_files"))):
        return
    trainer = config.trainer
    try:
        check_test_steps(
            load_config(config.get("care")).test_sets_at_steps,
            test_freq=trainer.get("test_freq", -1),
            last_step=trainer.get("total_training_steps"),
            val_before_train=trainer.get("val_before_train", True),
            val_only=trainer.get("val_only", False),
        )
    except ValueError as error:
        raise DataError(str(error)) from None


def _has_test_rows(path: str) -> bool:
    import pyarrow.parquet as pq

    if "://" in path or not path.endswith(".parquet"):
        return False
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        if "extra_info" not in schema.names or schema.field("extra_info").type.get_field_index("split") < 0:
            return False
        splits = file.read(columns=["extra_info.split"]).column("extra_info").to_pylist()
    return any(is_test_row(info) for info in splits)


def check_leakage(config: DictConfig) -> None:
    """Looks for records of the training files in test sets: those of ``data.val_files``, and those prepared beside.

    ``data.care.leakage``: ``warn`` (default) prints what is found, ``strict`` refuses, ``off`` does not look.

    Args:
        config: verl's whole config.

    Raises:
        DataError: an overlap where that is refused, or another value; one line.
    """
    mode = OmegaConf.select(config, "data.care.leakage", default="warn")
    # YAML 1.1 reads off as false.
    mode = "off" if mode is False else mode
    if mode not in ("warn", "strict", "off"):
        raise DataError(f"data.care.leakage: expected warn, strict or off; got {mode!r}")
    train, evaluation = (
        [
            path
            for path in _files(OmegaConf.select(config, f"data.{name}"))
            if path.endswith(".parquet") and "://" not in path
        ]
        for name in ("train_files", "val_files")
    )
    overlaps = [] if mode == "off" else compare_files(train, evaluation)
    for overlap in overlaps:
        print(f"warning: {overlap}", file=sys.stderr)
    if overlaps and mode == "strict":
        raise DataError(
            f"the training files overlap {len(overlaps)} test sets, and data.care.leakage=strict refuses that"
        )


def check_supervised_run(config: DictConfig) -> None:
    """Checks what a supervised run reads from disk: data files, their records and the model's folder.

    Args:
        config: the whole config of ``verl.trainer.sft_trainer``.

    Raises:
        DataError: something is missing or faulty; one line, with the remedy.
    """
    care = OmegaConf.select(config, "data.care")
    for name in ("train_files", "val_files"):
        for path in _files(OmegaConf.select(config, f"data.{name}")):
            if not os.path.exists(path):
                raise missing_file(path, command_for(care, path))
            check_supervised_file(path, check_media=OmegaConf.select(config, "data.care.check_media", default=True))
    _check_model(config, "model.path")


QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "DO_NOT_TRACK": "1"}
"""Ray, vLLM and Hugging Face's hub report their use over the network unless these say otherwise; what the user has set
stays."""


class Preflight(Callback):
    """Runs its checks before the job; a mistake ends the process with its line and status 1. Sets ``QUIET``."""

    checks: tuple[Callable[[DictConfig], None], ...] = (check_hook, check_run, check_test_sets, check_leakage)

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        try:
            for check in self.checks:
                check(config)
        except DataError as error:
            # Hydra turns an exception of a callback into a warning and goes on; it lets SystemExit through.
            raise SystemExit(f"error: {error}") from None

    on_multirun_start = on_run_start


class SupervisedPreflight(Preflight):
    """The same for ``verl.trainer.sft_trainer``."""

    checks = (check_supervised_run, check_leakage)
