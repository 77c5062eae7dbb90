"""Validation files by name, which of their rows are a test set, and at which steps those are read. Pure.

``data.val_files`` resolves to the values of ``data.care.val_sets``, a dict, so that every ``val_*`` recipe adds a key
of its own. Rows of a test set are known by their ``extra_info.split``: our trainers read them at the steps that
``care.test_sets_at_steps`` names and at no other, for a checkpoint picked by them would flatter itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verl_care.data.records import replace_file

DEVELOPMENT_SPLITS = ("train", "dev", "val")
"""Values of ``extra_info.split`` that any validation may read, as it may rows without one. All others name a test set,
also ``validation``: what LongVideoBench calls so is what is reported."""

LAST = "last"
"""In ``care.test_sets_at_steps``: the last step of the run."""

READINGS_FILE = "care_test_sets.json"
"""In the run's folder: the steps at which test sets were read so far."""


def is_test_row(extra_info: Mapping[str, Any] | None) -> bool:
    """Whether a row belongs to a test set."""
    split = (extra_info or {}).get("split")
    return split is not None and split not in DEVELOPMENT_SPLITS


def command_for(care: Mapping[str, Any] | None, path: str) -> str | None:
    """The command that makes a data file: of its name in ``val_sets``, else the data set's own.

    Args:
        care: the ``data.care`` node.
        path: the file, as ``data.train_files`` or ``data.val_files`` names it.

    Returns:
        ``data.care.make_commands.<name>``, else ``data.care.make_command``; None where neither is set.
    """
    care = care or {}
    commands = care.get("make_commands") or {}
    for name, file in (care.get("val_sets") or {}).items():
        if file == path and commands.get(name):
            return str(commands[name])
    return care.get("make_command")


def is_test_step(steps: Sequence[int | str], step: int, last_step: int, *, val_only: bool = False) -> bool:
    """Whether a validation at this step also reads the test sets.

    Args:
        steps: ``care.test_sets_at_steps``: steps, 0 for before training, or ``last``.
        step: steps trained so far.
        last_step: steps of the whole run.
        val_only: ``trainer.val_only``: the run's only validation is its last.
    """
    return step in steps or (LAST in steps and (val_only or step >= last_step))


def check_test_steps(
    steps: Sequence[int | str],
    *,
    test_freq: int,
    last_step: int | None,
    val_before_train: bool,
    val_only: bool = False,
) -> None:
    """Checks that verl validates at every step at which test sets are to be read.

    Args:
        steps: ``care.test_sets_at_steps``.
        test_freq: ``trainer.test_freq``; below 1 verl never validates while it trains.
        last_step: steps of the whole run, None where only the trainer can tell.
        val_before_train: ``trainer.val_before_train``.
        val_only: ``trainer.val_only``.

    Raises:
        ValueError: a step at which no validation takes place; says what to set.
    """
    if val_only:
        return
    for step in steps:
        name = f"care.test_sets_at_steps: {step}"
        if step == 0:
            if not val_before_train:
                raise ValueError(f"{name}: is before training; set trainer.val_before_train=true")
            continue
        if test_freq < 1:
            raise ValueError(
                f"{name}: nothing is validated while training with trainer.test_freq={test_freq}; set it to a number "
                "of steps, or care.test_sets_at_steps=[] to leave the test sets unread"
            )
        if step == LAST or last_step is None:
            continue
        if int(step) > last_step:
            raise ValueError(f"{name}: the run ends at step {last_step}")
        if int(step) != last_step and int(step) % test_freq:
            raise ValueError(f"{name}: is neither a multiple of trainer.test_freq={test_freq} nor the last step")


def record_reading(folder: str | Path, step: int) -> int:
    """Notes in the run's folder that test sets were read at a step, so that a report can say how often.

    Args:
        folder: ``trainer.default_local_dir``.
        step: steps trained so far.

    Returns:
        At how many steps of this run test sets were read, this one included.
    """
    path = Path(folder) / READINGS_FILE
    steps = set(json.loads(path.read_text(encoding="utf-8"))["steps"]) if path.exists() else set()
    steps.add(step)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as unfinished:
        unfinished.write_text(json.dumps({"steps": sorted(steps)}), encoding="utf-8")
    return len(steps)
