"""Made when imported: the gloo process group of a trainer worker.

Named by ``actor_rollout_ref.model.external_lib``, which verl imports in every process that reads the model config
before the worker asks for its process group. verl would ask for the backends ``cpu:gloo,cpu:gloo`` there, which torch
refuses, and leaves an existing group alone. Only trainer workers (``WG_BACKEND=ray``) get one: agent loops and rollout
servers read the same config.
"""

import os

import torch.distributed

from verl_care.workers import model_fixes  # noqa: F401  (applied on import; verl takes a single external_lib)


def ensure_process_group() -> None:
    """Make the default process group over gloo in a verl trainer worker, unless there is one."""
    if os.environ.get("WG_BACKEND") != "ray" or torch.distributed.is_initialized():
        return
    torch.distributed.init_process_group(
        backend="gloo",
        rank=int(os.environ.get("RANK", 0)),
        world_size=int(os.environ.get("WORLD_SIZE", 1)),
        init_method=os.environ.get("DIST_INIT_METHOD"),
    )


ensure_process_group()
