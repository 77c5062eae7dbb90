"""One fault of verl 0.9.1 with transformers 5.9, mended from outside. Import to apply.

A micro-batch without any image or video still runs the vision tower of Qwen2-VL and Qwen2.5-VL, so that all ranks take
part in its collectives, and adds ``0.0 * output.mean()`` (``verl/models/transformers/qwen2_vl.py``,
``_get_input_embeds``). transformers 5 returns an output object there, which has no ``mean``, and a text-only
micro-batch ends in AttributeError. The forward pass offers no extension point, so the output class gets the method.

To be named as, or imported by, ``actor_rollout_ref.model.external_lib``. Goes when verl unpacks the output itself;
``tests/workers/test_model_fixes.py`` fails then.
"""

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling


def _mean(output: BaseModelOutputWithPooling) -> torch.Tensor:
    """Return the mean of the vision tower's merged features, which verl multiplies by zero."""
    return output.pooler_output.mean()


def apply() -> None:
    """Give transformers' vision output a ``mean``, unless it has one."""
    if not hasattr(BaseModelOutputWithPooling, "mean"):
        BaseModelOutputWithPooling.mean = _mean


apply()
