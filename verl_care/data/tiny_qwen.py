"""Qwen2.5-VL and Qwen3-VL of any size with seeded weights: what the demo, the studies and the tests train.

With transformers' default (std 0.02) features of so small a model are lost in the residual stream: the demo's clip
changes no log-probability by more than 4e-4. Scaling by the fan-in makes it about 0.4.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

CLASSES = {
    "qwen2_5_vl": ("Qwen2_5_VLConfig", "Qwen2_5_VLForConditionalGeneration"),
    "qwen3_vl": ("Qwen3VLConfig", "Qwen3VLForConditionalGeneration"),
}
"""Config and model class in transformers, by family."""


def build_model(
    tokenizer: Any,
    *,
    text: dict[str, Any],
    vision: dict[str, Any],
    seed: int,
    family: str = "qwen2_5_vl",
    head_std: float = 0.02,
) -> Any:
    """A float32 model over a tokenizer's words, its weights drawn by ``init_by_fan_in``.

    Args:
        tokenizer: its length is the vocabulary, its special tokens are the model's.
        text: the text config; vocabulary, special tokens and the usual rotation are filled in.
        vision: the vision config; its tower's width is filled in, and that its output has the text's.
        seed: of the weights; torch's global generator stays as it is.
        family: one of ``CLASSES``.
        head_std: standard deviation of the output head.
    """
    import transformers

    config_class, model_class = (getattr(transformers, name) for name in CLASSES[family])
    token = tokenizer.convert_tokens_to_ids
    config = config_class(
        text_config={
            "vocab_size": len(tokenizer),
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
            **text,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, **text["rope_parameters"]},
        },
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "out_hidden_size": text["hidden_size"],
            **vision,
        },
        tie_word_embeddings=False,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config).float()
        init_by_fan_in(model, head_std)
    model.generation_config.eos_token_id = token("<|im_end|>")
    model.generation_config.pad_token_id = token("<|endoftext|>")
    return model


@contextmanager
def one_thread() -> Iterator[None]:
    """Has torch compute on one thread.

    So small a model gains nothing from more, and its weights then do not depend on how many there are.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def init_by_fan_in(model: Any, head_std: float = 0.02) -> None:
    """Draws the weights of a model anew, from torch's global generator, scaled by their fan-in.

    Args:
        model: changed in place.
        head_std: standard deviation of the output head. Small, it is a flat start over the words: the first steps learn
            the format instead of unlearning noise.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv3d):
            nn.init.normal_(module.weight, std=1.0 / math.sqrt(module.weight[0].numel()))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)
    nn.init.normal_(model.lm_head.weight, std=head_std)
