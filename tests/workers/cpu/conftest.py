"""Tiny vision-language models with random weights, made on the spot."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from verl_care.workers.cpu.generation import Request, Sampling
from verl_care.workers.cpu.hf_rollout import PromptPreparer

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
FAMILIES = ("qwen2_5_vl", "qwen3_vl")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """As in Ray's actors; more threads only wait for each other on matrices this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class TinyModel:
    """A checkpoint folder with what verl loads from it."""

    folder: Path
    model: torch.nn.Module
    model_config: Any
    preparer: PromptPreparer

    def request(self, kind: str, sampling: Sampling, text: str = "Which colour is the clip ?") -> Request:
        """Return a request for a text, image or video prompt, processed as the server does."""
        return self.preparer.prepare(*self.prompt(kind, text), None, sampling)

    def prompt(self, kind: str, text: str) -> tuple[list[int], list | None, list | None]:
        """Return expanded prompt tokens, images and videos, as an agent loop sends them."""
        from verl.utils.tokenizer import build_multimodal_processor_inputs

        images = [Image.fromarray(_frames(1)[0])] if kind == "image" else None
        videos = None
        if kind == "video":
            metadata = {"fps": 2.0, "frames_indices": [0, 1, 2, 3], "total_num_frames": 4, "video_backend": "pyav"}
            videos = [(torch.from_numpy(_frames(4)).permute(0, 3, 1, 2).float(), metadata)]
        content = ([] if kind == "text" else [{"type": kind}]) + [{"type": "text", "text": text}]
        processor = self.model_config.processor
        rendered = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
        inputs = build_multimodal_processor_inputs(processor, text=[rendered], images=images, videos=videos)
        return [int(token) for token in inputs["input_ids"][0]], images, videos


def _frames(count: int) -> np.ndarray:
    """(count, 64, 64, 3) uint8, a bright bar that moves over noise."""
    frames = np.random.default_rng(count).integers(0, 120, (count, 64, 64, 3), dtype=np.uint8)
    for i in range(count):
        frames[i, :, 8 * i : 8 * i + 12] = (230, 60, 20)
    return frames


def _tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[t for t in SPECIAL_TOKENS if t not in ("<|im_end|>", "<|endoftext|>")],
        chat_template=CHAT_TEMPLATE,
    )


def build_checkpoint(family: str, folder: Path) -> None:
    """Write model, tokenizer and processor; weights scaled by fan-in, so that the picture moves the logits."""
    import transformers as tf

    tokenizer = _tokenizer()
    token = dict(zip(SPECIAL_TOKENS, tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS), strict=True))
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
        "eos_token_id": token["<|im_end|>"],
        "pad_token_id": token["<|endoftext|>"],
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 64,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    marks = {
        "image_token_id": token["<|image_pad|>"],
        "video_token_id": token["<|video_pad|>"],
        "vision_start_token_id": token["<|vision_start|>"],
        "vision_end_token_id": token["<|vision_end|>"],
        "tie_word_embeddings": False,
    }
    if family == "qwen2_5_vl":
        vision |= {"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1], "tokens_per_second": 2}
        config = tf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **marks)
        model_class, processor_class = tf.Qwen2_5_VLForConditionalGeneration, tf.Qwen2_5_VLProcessor
        limits = {"min_pixels": 4 * 28**2, "max_pixels": 9 * 28**2}
        video_processor = tf.Qwen2VLVideoProcessor(patch_size=14, **limits)
        image_processor = tf.Qwen2VLImageProcessor(patch_size=14, **limits)
    else:
        vision |= {"patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
        config = tf.Qwen3VLConfig(text_config=text | {"head_dim": 16}, vision_config=vision, **marks)
        model_class, processor_class = tf.Qwen3VLForConditionalGeneration, tf.Qwen3VLProcessor
        size = {"shortest_edge": 4 * 32**2, "longest_edge": 36 * 32**2}
        video_processor = tf.Qwen3VLVideoProcessor(patch_size=16, size=size)
        image_processor = tf.Qwen2VLImageProcessor(patch_size=16, size=size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
    processor_class(
        image_processor=image_processor,
        tokenizer=tokenizer,
        video_processor=video_processor,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)


def _load(family: str, folder: Path) -> TinyModel:
    from verl.utils.model import get_hf_auto_model_class
    from verl.workers.config import HFModelConfig

    build_checkpoint(family, folder)
    config = HFModelConfig(path=str(folder), override_config={"attn_implementation": "sdpa"})
    model = get_hf_auto_model_class(hf_config=config.hf_config).from_pretrained(
        folder, config=config.hf_config, dtype=torch.float32
    )
    return TinyModel(folder=folder, model=model.eval(), model_config=config, preparer=PromptPreparer(config))


@pytest.fixture(scope="session", params=FAMILIES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A model of each family in turn."""
    return _load(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def tiny_qwen25(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Qwen2.5-VL only."""
    return _load("qwen2_5_vl", tmp_path_factory.mktemp("server"))
