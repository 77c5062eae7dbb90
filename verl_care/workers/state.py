"""State of a shaping rule beside verl's checkpoint: ``global_step_N/care_state.json``, versioned and atomic."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

logger = logging.getLogger(__name__)
logger.setLevel(os.getenv("VERL_LOGGING_LEVEL", "INFO"))

STATE_FILE = "care_state.json"
STATE_VERSION = 1
State = TypeVar("State")

MIGRATIONS: dict[int, Callable[[str, dict[str, Any]], dict[str, Any]]] = {}
"""Version -> function of a rule's name and its state that gives the state of the next version. A field that may be
missing needs none; one that changes its meaning does, and a new ``STATE_VERSION``."""


class StateError(RuntimeError):
    """A state file that is missing, broken or of another rule; the message names file and remedy."""


def save_state(
    folder: str | os.PathLike[str], rule: str, global_step: int, state: dict[str, Any], file: str = STATE_FILE
) -> Path:
    """Writes the state whole or not at all.

    Args:
        folder: verl's ``global_step_N``; made if it is not there.
        rule: name of the rule that wrote it.
        global_step: verl's step; must agree on load.
        state: JSON types.
        file: its name.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file
    partial = path.with_suffix(f".partial{os.getpid()}")
    with open(partial, "w", encoding="utf-8") as stream:
        json.dump({"version": STATE_VERSION, "rule": rule, "global_step": global_step, "state": state}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)
    return path


def load_state(folder: str | os.PathLike[str], rule: str, global_step: int, file: str = STATE_FILE) -> dict[str, Any]:
    """The state that ``save_state`` wrote, brought up to today's version.

    Raises:
        StateError: no file, half a file, another version, rule or step.
    """
    path = Path(folder) / file
    remedy = "Resume from another checkpoint, or begin a new state with care.on_missing_state=fresh."
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        version, saved_rule, saved_step, state = (saved[key] for key in ("version", "rule", "global_step", "state"))
    except FileNotFoundError:
        raise StateError(f"{path}: missing, so the state of rule {rule} is unknown. {remedy}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(f"{path}: not a whole state file ({error!r}). {remedy}") from None
    while version in MIGRATIONS:
        state = MIGRATIONS[version](saved_rule, state)
        version += 1
    if version != STATE_VERSION:
        raise StateError(f"{path}: version {version}; this verl_care reads version {STATE_VERSION}. {remedy}")
    if saved_rule != rule or saved_step != global_step:
        raise StateError(
            f"{path}: written by rule {saved_rule} at step {saved_step}; "
            f"expected rule {rule} at step {global_step}. {remedy}"
        )
    return state


def resume_state(
    trainer: Any,
    rule: str,
    global_step: int,
    from_dict: Callable[[dict[str, Any]], State],
    *,
    on_missing: str,
    file: str = STATE_FILE,
) -> State | None:
    """The state in the checkpoint that a run goes on from.

    Args:
        trainer: verl's ``trainer`` node.
        rule: name of the rule that wrote it.
        global_step: verl's step after it has loaded the checkpoint.
        from_dict: makes the state of JSON types.
        on_missing: ``care.on_missing_state``.
        file: its name.

    Returns:
        The state; None where it cannot be had and ``on_missing`` is ``fresh``, with a warning.

    Raises:
        StateError: it cannot be had otherwise; names file and remedy.
    """
    by_path = trainer.resume_mode == "resume_path"
    folder = trainer.resume_from_path if by_path else f"{trainer.default_local_dir}/global_step_{global_step}"
    try:
        return from_dict(load_state(folder, rule, global_step, file))
    except (StateError, ValueError) as error:
        if on_missing != "fresh":
            raise StateError(str(error)) from None
        logger.warning(f"care.on_missing_state=fresh: beginning a new state of {rule} at step {global_step}: {error}")
        return None


def check_tracker(run_dir: str | os.PathLike[str]) -> None:
    """Looks at the file in which verl notes the last complete checkpoint; verl 0.9.1 does not write it in one go.

    Raises:
        StateError: it holds no number, as after a crash while it was written; names the checkpoints that are there.
    """
    path = Path(run_dir) / "latest_checkpointed_iteration.txt"
    if not path.exists() or path.read_bytes().strip().isdigit():
        return
    # data.pt is the last that verl writes before it.
    steps = sorted(int(found.parent.name.rpartition("_")[2]) for found in path.parent.glob("global_step_*/data.pt"))
    remedy = f"write {steps[-1]} into it" if steps else "remove it to begin anew, for there is no whole checkpoint"
    raise StateError(f"{path}: expected the step of the last checkpoint, found {path.read_bytes()[:20]!r}; {remedy}")
