"""verl on a machine without an accelerator: platform, FSDP2 engine, and the rollout engine ``hf``.

Nothing heavy is imported here. `HOOKS` names, for each module of verl, what to register once it has been imported.
"""

import importlib
from collections.abc import Callable
from types import ModuleType


def _register_platform(module: ModuleType) -> None:
    from verl_care.workers.cpu import platform

    platform.register()


def _register_engines(module: ModuleType) -> None:
    # Registers on import; where it is its own import of verl that led here, it goes on with that afterwards.
    importlib.import_module("verl_care.workers.cpu.engine")


def _register_rollout(module: ModuleType) -> None:
    module._ROLLOUT_REGISTRY[("hf", "async")] = "verl_care.workers.cpu.hf_rollout.HFServerAdapter"


def _register_process_group(module: ModuleType) -> None:
    from verl_care.workers.cpu import spmd

    spmd.register(module)


def _load_replica() -> type:
    from verl_care.workers.cpu.hf_rollout import HFReplica

    return HFReplica


def _register_replica(module: ModuleType) -> None:
    module.RolloutReplicaRegistry.register("hf", _load_replica)


def _register_agent_loop(module: ModuleType) -> None:
    module._agent_loop_registry["care_agent"] = {"_target_": "verl_care.workers.agent_loop.CareAgentLoop"}


HOOKS: dict[str, Callable[[ModuleType], None]] = {
    "verl.plugin.platform": _register_platform,
    "verl.workers.engine.fsdp.transformer_impl": _register_engines,
    "verl.utils.distributed": _register_process_group,
    "verl.workers.rollout.base": _register_rollout,
    "verl.workers.rollout.replica": _register_replica,
    "verl.experimental.agent_loop.agent_loop": _register_agent_loop,
}
"""Module of verl -> what to do with it once it is imported."""


def register() -> None:
    """Have each hook run when its module is imported, at once for those that are."""
    from wrapt import register_post_import_hook

    for name, hook in HOOKS.items():
        register_post_import_hook(hook, name)
