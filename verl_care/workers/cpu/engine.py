"""verl's FSDP engines on the CPU: FSDP2 over gloo.

verl 0.9.1 registers its engines for ``cuda`` and ``npu``. The subclasses here add ``cpu`` and keep the reference
policy's weights where they are: verl moves them to *pinned* host memory, which needs a CUDA driver.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead


@contextmanager
def _without_forward_only(engine_config: Any) -> Iterator[None]:
    """Clear ``engine_config.forward_only`` for a while (its dataclass is frozen)."""
    forward_only = engine_config.forward_only
    object.__setattr__(engine_config, "forward_only", False)
    try:
        yield
    finally:
        object.__setattr__(engine_config, "forward_only", forward_only)


class _CPUEngineMixin:
    """What differs from a GPU when the module is wrapped."""

    def _build_fsdp_module(self, module: torch.nn.Module) -> torch.nn.Module:
        config = self.engine_config
        if config.strategy != "fsdp2":
            raise ValueError(
                f"strategy={config.strategy!r} needs an accelerator; set actor_rollout_ref.actor.strategy=fsdp2, "
                "actor_rollout_ref.ref.strategy=fsdp2 and critic.strategy=fsdp2 (care_hardware=cpu does)"
            )
        if config.offload_policy or config.param_offload or config.optimizer_offload:
            raise ValueError(
                "fsdp_config.offload_policy, param_offload and optimizer_offload must be False on the CPU: "
                "there is no device memory to spare"
            )
        with _without_forward_only(config):
            return super()._build_fsdp_module(module)


class CPUEngineWithLMHead(_CPUEngineMixin, FSDPEngineWithLMHead):
    """Actor and reference policy on the CPU."""


class CPUEngineWithValueHead(_CPUEngineMixin, FSDPEngineWithValueHead):
    """Critic on the CPU."""


def register() -> None:
    """Enter both engines in verl's registry for the device ``cpu`` (once)."""
    for model_type, engine in (("language_model", CPUEngineWithLMHead), ("value_model", CPUEngineWithValueHead)):
        if EngineRegistry._engines.get(model_type, {}).get("fsdp2", {}).get("cpu") is None:
            EngineRegistry.register(model_type=model_type, backend=["fsdp", "fsdp2"], device="cpu")(engine)
