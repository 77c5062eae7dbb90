"""A checkpoint -> a folder that transformers and vLLM read. Weights that verl saved in shards are merged once, by
verl's own ``model_merger``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from verl_care.evaluation.recorded import EvaluationError

MERGED = "merged_hf"
"""Folder beside the shards that the merged weights go to."""

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def find_model(path: str) -> str:
    """The folder of a model, merged from verl's shards if need be; a name that is no folder is left as it is.

    Args:
        path: a Hugging Face folder or name; a run's folder (its latest ``global_step_N``), a ``global_step_N``, or its
            ``actor``.

    Raises:
        EvaluationError: a folder with neither, or shards that verl's merger cannot merge; says what it said.
    """
    folder = Path(path)
    if not folder.is_dir() or _has_weights(folder):
        return path
    steps = sorted(folder.glob("global_step_*"), key=lambda step: int(step.name.rsplit("_", 1)[1]))
    if steps:
        folder = steps[-1]
    if (folder / "actor").is_dir():
        folder = folder / "actor"
    for inner in (folder, folder / "huggingface", folder / MERGED):
        if _has_weights(inner):
            return str(inner)
    if not any(folder.glob("model_world_size_*_rank_0.pt")):
        raise EvaluationError(
            f"{path}: neither a Hugging Face model (*.safetensors) nor a checkpoint of verl (global_step_N/actor)"
        )
    return str(_merge(folder))


def _has_weights(folder: Path) -> bool:
    return (folder / "config.json").exists() and any(any(folder.glob(pattern)) for pattern in _WEIGHTS)


def _merge(actor: Path) -> Path:
    target = actor / MERGED
    partial = actor / f".{MERGED}.{os.getpid()}"
    command = [sys.executable, "-m", "verl.model_merger", "merge", "--backend", "fsdp"]
    command += ["--local_dir", str(actor), "--target_dir", str(partial)]
    print(f"merging the shards of {actor}", file=sys.stderr)
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode != 0 or not _has_weights(partial):
            said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
            raise EvaluationError(f"{actor}: verl's model_merger failed: {said}")
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target
