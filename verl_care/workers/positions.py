"""Which positions a process gives to videos: real seconds, or stock verl's and vLLM's.

Agent loop workers read ``care.video.positions``. Rollout engines see no ``care:`` node, so that the recipes hand them
the same word in the environment, through Ray's runtime environment; where it is not set, everything is stock. Nothing
heavy is imported here: vLLM's entry point asks in each of its processes.
"""

from __future__ import annotations

import os
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

ENV_NAME = "VERL_CARE_POSITIONS"
"""Set for all processes of a run by the recipes, through Ray's runtime environment; unset means stock."""
SECONDS, STOCK = "seconds", "stock"

_PROCESSORS = ("Qwen2VLProcessor", "Qwen2_5_VLProcessor")
"""Others are right in stock: Qwen3-VL writes its timestamps into the text, and no position depends on them."""


def positions_of_process() -> str:
    """The word in this process's environment.

    Raises:
        ValueError: it is neither ``seconds`` nor ``stock``.
    """
    word = os.environ.get(ENV_NAME) or STOCK
    check_word(ENV_NAME, word)
    return word


def check_word(name: str, word: str) -> None:
    """Refuses what says nothing about positions.

    Raises:
        ValueError: the word is neither ``seconds`` nor ``stock``; names the setting.
    """
    if word not in (SECONDS, STOCK):
        raise ValueError(f"{name}: expected {SECONDS} or {STOCK}; got {word!r}")


def use_seconds(processor: Any) -> None:
    """Have a processor place videos by real seconds; verl asks it for positions (``_compute_position_ids``).

    Args:
        processor: as ``verl.utils.tokenizer.hf_processor`` returns it; None and processors of other models are left
            alone.
    """
    if type(processor).__name__ in _PROCESSORS:
        processor.get_rope_index = types.MethodType(_get_rope_index, processor)
        processor.get_rope_index_kwargs = _seconds_of


def _seconds_of(multi_modal_inputs: dict[str, Any]) -> dict[str, Any]:
    return {"second_per_grid_ts": multi_modal_inputs.get("second_per_grid_ts")}


def _get_rope_index(
    processor: Any,
    input_ids: Tensor,
    mm_token_type_ids: Tensor | None = None,
    image_grid_thw: Tensor | None = None,
    video_grid_thw: Tensor | None = None,
    second_per_grid_ts: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Same call as the method of the model that verl binds to the processor."""
    import torch

    from verl_care.data.positions import rope_index

    if mm_token_type_ids is None:
        mm_token_type_ids = torch.zeros_like(input_ids)
        mm_token_type_ids[input_ids == processor.image_token_id] = 1
        mm_token_type_ids[input_ids == processor.video_token_id] = 2
    vision = processor.config.vision_config
    return rope_index(
        input_ids,
        mm_token_type_ids,
        image_grid_thw=image_grid_thw,
        video_grid_thw=video_grid_thw,
        second_per_grid_ts=second_per_grid_ts,
        attention_mask=attention_mask,
        spatial_merge_size=vision.spatial_merge_size,
        tokens_per_second=getattr(vision, "tokens_per_second", 1.0),
    )
