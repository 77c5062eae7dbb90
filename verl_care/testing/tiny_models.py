"""Qwen2.5-VL and Qwen3-VL small enough for a test, with their real processors over the demo's words.

Weights are scaled by the fan-in and the head is sharp, so that a difference in positions or pixels shows in
log-probabilities.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from verl_care.data import demo_model, tiny_qwen

FAMILIES = tuple(tiny_qwen.CLASSES)
PATCH_SIZE = {"qwen2_5_vl": 14, "qwen3_vl": 16}


def build_processor(family: str, *, min_pixels: int = 28 * 28, max_pixels: int = 64 * 64 * 1024) -> Any:
    """The family's processor.

    Args:
        family: one of ``FAMILIES``.
        min_pixels: smaller frames and images are scaled up.
        max_pixels: larger ones are scaled down; all frames together for Qwen3-VL.
    """
    from transformers import (
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    tokenizer = demo_model.build_processor().tokenizer
    tokenizer.model_max_length = 1 << 20
    template = demo_model.CHAT_TEMPLATE
    size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    if family == "qwen2_5_vl":
        return Qwen2_5_VLProcessor(
            image_processor=Qwen2VLImageProcessor(size=size),
            tokenizer=tokenizer,
            video_processor=Qwen2VLVideoProcessor(size=size),
            chat_template=template,
        )
    # Timestamps of Qwen3-VL's frames are words of the prompt.
    tokenizer.add_tokens([*(str(number) for number in range(21, 60)), "seconds"])
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size, patch_size=16),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(size=size, patch_size=16),
        chat_template=template,
    )


def build_model(family: str, tokenizer: Any, *, seed: int = 0, **vision: Any) -> nn.Module:
    """A model of about half a million parameters, float32, random weights.

    Args:
        family: one of ``FAMILIES``.
        tokenizer: the processor's; its length is the vocabulary.
        seed: of the weights.
        vision: changes of the vision config.
    """
    text: dict[str, Any] = {
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "max_position_embeddings": 4096,
    }
    if family == "qwen2_5_vl":
        text |= {"rope_parameters": {"mrope_section": [4, 6, 6]}, "use_sliding_window": False}
        # 2 positions a second, as in the released models; the class's default is 4.
        tower: dict[str, Any] = {"window_size": 112, "fullatt_block_indexes": [0, 1], "tokens_per_second": 2}
    else:
        text |= {"head_dim": 32, "rope_parameters": {"mrope_section": [6, 5, 5], "mrope_interleaved": True}}
        tower = {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}
    tower |= {"depth": 2, **vision}
    return tiny_qwen.build_model(tokenizer, text=text, vision=tower, seed=seed, family=family, head_std=0.3).eval()


def save(folder: Path, family: str, **pixels: int) -> Path:
    """Write model and processor as transformers, verl and vLLM read them; returns the folder."""
    processor = build_processor(family, **pixels)
    demo_model.save_model(build_model(family, processor.tokenizer), processor, folder)
    return folder
