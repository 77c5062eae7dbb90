"""verl's FSDP engines on the CPU: FSDP2 over gloo, the whole model as one unit.

verl 0.9.1 registers its engines for ``cuda`` and ``npu`` only. The subclasses here add ``cpu`` and differ in how the
module is wrapped. One unit, where verl makes one of each layer, because of batches that mix media: a rank whose
micro-batch holds images and videos runs the vision tower twice, a rank with either of them once, and units within the
tower would then gather in different orders on the two (gloo: "Received data size doesn't match"). Models are small
here; there is nothing to gain from gathering them layer by layer.
"""

import torch
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from verl.utils.fsdp_utils import fsdp2_load_full_state_dict, maybe_patch_fsdp_module
from verl.utils.torch_dtypes import PrecisionType
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead


class _CPUEngineMixin:
    """What differs from a GPU when the module is wrapped."""

    def _build_fsdp_module(self, module: torch.nn.Module) -> torch.nn.Module:
        config = self.engine_config
        if config.strategy != "fsdp2":
            raise ValueError(
                f"strategy={config.strategy!r} needs an accelerator; set actor_rollout_ref.actor.strategy=fsdp2, "
                "actor_rollout_ref.ref.strategy=fsdp2 and critic.strategy=fsdp2 (care_hardware=cpu does)"
            )
        if (
            config.offload_policy
            or config.param_offload
            or config.optimizer_offload
            or self.model_config.enable_activation_offload
        ):
            raise ValueError(
                "fsdp_config.offload_policy, param_offload, optimizer_offload and model.enable_activation_offload must "
                "be False on the CPU: there is no device memory to spare"
            )
        precision = config.mixed_precision or {}
        param_dtype = PrecisionType.to_dtype(precision.get("param_dtype", "bf16"))
        if param_dtype == torch.float16:
            raise ValueError("mixed_precision.param_dtype=fp16 needs an accelerator; use fp32 or bf16 on the CPU")
        # Read by the forward pass and the optimizer step.
        self._autocast_dtype = param_dtype
        self.scaler = None

        # The reference policy is wrapped like the actor; verl would move its weights to pinned memory, which needs a
        # CUDA driver.
        full_state = module.state_dict()
        with maybe_patch_fsdp_module(module):
            fully_shard(
                module,
                mesh=self.device_mesh,
                reshard_after_forward=config.reshard_after_forward,
                mp_policy=MixedPrecisionPolicy(
                    param_dtype=param_dtype,
                    reduce_dtype=PrecisionType.to_dtype(precision.get("reduce_dtype", "fp32")),
                    cast_forward_inputs=True,
                ),
            )
        fsdp2_load_full_state_dict(module, full_state, self.device_mesh, None)
        return module


@EngineRegistry.register(model_type="language_model", backend=["fsdp", "fsdp2"], device="cpu")
class CPUEngineWithLMHead(_CPUEngineMixin, FSDPEngineWithLMHead):
    """Actor and reference policy on the CPU."""


@EngineRegistry.register(model_type="value_model", backend=["fsdp", "fsdp2"], device="cpu")
class CPUEngineWithValueHead(_CPUEngineMixin, FSDPEngineWithValueHead):
    """Critic on the CPU."""
