"""The demo's model: a word-level tokenizer, Qwen2.5-VL's own processor, and a Qwen2.5-VL small enough for a laptop.

The warm start plays the part of the SFT checkpoint that a published run starts from: it knows the format of a response
and what to look for in a clip, and is unsure about the answer, so that reinforcement learning has something to do.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from verl_care.data import demo_clips, tiny_qwen
from verl_care.data.positions import rope_index

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    # Image and video placeholders must be *special*: verl decodes the prompt without special tokens and runs the
    # processor over that text again to get the pixel values (AgentLoopWorker._compute_multi_modal_inputs).
    "<|image_pad|>",
    "<|video_pad|>",
)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
THOUGHTS = ("hmm", "wait", "let", "me", "look", "again", "at", "the", "clip", "first", "then", "so", "maybe", "yes")
UNKNOWN = "<unk>"

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_WORD = re.compile(r"[A-Za-z]+|[0-9]+|\n|[^\sA-Za-z0-9]")

MEAN_THOUGHTS = 8.0
"""Mean number of words between the think tags after the warm start."""
MAX_THOUGHTS = 24


def vocabulary() -> list[str]:
    """Every word of questions, answers and thoughts, sorted, after the tags and the unknown word."""
    texts = [UNKNOWN, "\n", "user assistant system = + . ?", *THOUGHTS]
    texts += [wording.format(a=1, b=2) for wordings in demo_clips.QUESTIONS.values() for wording in wordings]
    texts += [choice for choices in demo_clips.CHOICES.values() for choice in choices]
    texts += [*demo_clips.SUFFIXES.values(), *demo_clips.LETTERS, " ".join(str(number) for number in range(21))]
    words = {word for text in texts[1:] for word in _WORD.findall(text)}
    return [UNKNOWN, *TAGS, *sorted(words)]


def build_processor(words: Sequence[str] | None = None, max_pixels: int = demo_clips.FRAME_SIZE**2) -> Any:
    """Qwen2.5-VL's processor over a word-level tokenizer whose length is the model's vocabulary.

    Args:
        words: what the tokenizer knows, unknown word and tags first; the demo's vocabulary by default.
        max_pixels: largest frame or image.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    words = vocabulary() if words is None else words
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[^\S\n]+"), "removed"),
            pre_tokenizers.Split(Regex(r"[A-Za-z]+|[0-9]+|[^A-Za-z0-9]"), "isolated"),
        ]
    )
    # Not special: the tags are part of the response that is scored.
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
    pixels = {"min_pixels": 28 * 28, "max_pixels": max_pixels}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels),
        tokenizer=fast,
        video_processor=Qwen2VLVideoProcessor(**pixels),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: Any, seed: int) -> Any:
    """A Qwen2.5-VL of about half a million parameters with fan-in scaled weights."""
    return tiny_qwen.build_model(
        tokenizer,
        text={
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            # 32 a head: vLLM's attention on CPU takes no less.
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": False,
            "rope_parameters": {"mrope_section": [4, 6, 6]},
            "use_sliding_window": False,
        },
        vision={
            "depth": 2,
            "window_size": 112,
            "fullatt_block_indexes": [0, 1],
            # No position depends on seconds, so that the warm-started weights fit the positions of stock verl and vLLM
            # too: rollout and actor agree with the video path switched off. The order of the frames is still there:
            # two frames make one patch, and attention is causal.
            "tokens_per_second": 0,
        },
        seed=seed,
    )


@dataclass(frozen=True)
class Prompt:
    """One record as the model sees it: tokens and pixels exactly as verl's agent loop makes them."""

    input_ids: Tensor
    """Token ids of the chat prompt with expanded placeholders, (T,), int64."""
    pixels: Tensor | None
    """Flattened patches of the clip or the image, (patches, 1176), float32."""
    grid: Tensor | None
    """(1, 3) int64: frame pairs, patch rows, patch columns."""
    seconds: float | None
    """What one frame pair of a clip stands for; None without a clip."""
    is_video: bool
    media: str
    """Path of the clip or the image, "" without one."""
    kind: str
    truth: str


def messages_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The record's messages with each placeholder replaced by its media, as verl's `RLHFDataset` does."""
    media = {"<video>": iter(record["videos"]), "<image>": iter(record["images"])}
    messages = []
    for message in record["prompt"]:
        parts = []
        for piece in re.split("(<video>|<image>)", message["content"]):
            if piece in media:
                parts.append({"type": piece[1:-1], **next(media[piece])})
            elif piece:
                parts.append({"type": "text", "text": piece})
        messages.append({"role": message["role"], "content": parts})
    return messages


def encode_records(records: Sequence[dict[str, Any]], processor: Any) -> list[Prompt]:
    """Decode the media of each record and run chat template and processor over it."""
    from qwen_vl_utils import process_vision_info

    from verl_care.data.video import register_pyav_reader

    register_pyav_reader()
    tokenizer = processor.tokenizer
    seen: dict[str, tuple[Tensor, Tensor, float | None]] = {}
    prompts = []
    for record in records:
        messages = messages_of(record)
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        is_video = bool(record["videos"])
        media = record["videos"][0]["video"] if is_video else record["images"][0]["image"] if record["images"] else ""
        pixels = grid = seconds = None
        if media:
            # The questions about one clip share its pixels; the text gets as many placeholders as the processor gives.
            if media not in seen:
                seen[media] = _media_patches(process_vision_info, messages, processor)
            pixels, grid, seconds = seen[media]
            token = processor.video_token if is_video else processor.image_token
            text = text.replace(token, token * (int(grid.prod()) // 4))
        prompts.append(
            Prompt(
                input_ids=torch.tensor(tokenizer(text)["input_ids"]),
                pixels=pixels,
                grid=grid,
                seconds=seconds,
                is_video=is_video,
                media=media,
                kind=record["extra_info"]["kind"],
                truth=record["reward_model"]["ground_truth"],
            )
        )
    return prompts


def _media_patches(
    process_vision_info: Any, messages: list[dict[str, Any]], processor: Any
) -> tuple[Tensor, Tensor, float | None]:
    """Flattened patches and grid of the one clip or image in the messages, and a clip's seconds a frame pair."""
    images, videos = process_vision_info(messages, image_patch_size=14, return_video_metadata=True)
    if videos:
        clips, metadata = zip(*videos, strict=True)
        out = processor.video_processor(
            videos=list(clips),
            video_metadata=list(metadata),
            do_sample_frames=False,
            return_metadata=True,
            return_tensors="pt",
        )
        seconds = processor.video_processor.temporal_patch_size / out["video_metadata"][0].sampled_fps
        return out["pixel_values_videos"], out["video_grid_thw"], seconds
    out = processor.image_processor(images=images, return_tensors="pt")
    return out["pixel_values"], out["image_grid_thw"], None


def draw_response(answer: str, rng: random.Random, mean_thoughts: float = MEAN_THOUGHTS) -> str:
    """A response in the published format, with a think block of geometric length."""
    words = [rng.choice(THOUGHTS)]
    while len(words) < MAX_THOUGHTS and rng.random() > 1.0 / mean_thoughts:
        words.append(rng.choice(THOUGHTS))
    return f"<think>{' '.join(words)}</think><answer>{answer}</answer>"


def collate(model: Any, prompts: Sequence[Prompt], responses: Sequence[Tensor]) -> dict[str, Tensor]:
    """Model inputs of prompts with responses, padded on the right; positions as the recipes have them.

    Returns:
        Keyword arguments for the model, plus `response_mask` (B, T), 1 on response tokens.
    """
    pad = model.config.text_config.pad_token_id
    rows = [torch.cat([prompt.input_ids, response]) for prompt, response in zip(prompts, responses, strict=True)]
    input_ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    lengths = torch.tensor([len(row) for row in rows])
    starts = torch.tensor([len(prompt.input_ids) for prompt in prompts])
    column = torch.arange(input_ids.shape[1])
    attention_mask = (column < lengths[:, None]).long()
    token_types = (input_ids == model.config.image_token_id).int() + 2 * (
        input_ids == model.config.video_token_id
    ).int()
    images = [prompt for prompt in prompts if prompt.pixels is not None and not prompt.is_video]
    videos = [prompt for prompt in prompts if prompt.pixels is not None and prompt.is_video]
    batch: dict[str, Tensor] = {}
    for members, pixels, grid in (
        (images, "pixel_values", "image_grid_thw"),
        (videos, "pixel_values_videos", "video_grid_thw"),
    ):
        if members:
            batch[pixels] = torch.cat([prompt.pixels for prompt in members])
            batch[grid] = torch.cat([prompt.grid for prompt in members])
    position_ids, _ = rope_index(
        input_ids,
        token_types,
        image_grid_thw=batch.get("image_grid_thw"),
        video_grid_thw=batch.get("video_grid_thw"),
        second_per_grid_ts=[prompt.seconds for prompt in videos] or None,
        attention_mask=attention_mask,
        tokens_per_second=model.config.vision_config.tokens_per_second,
    )
    batch |= {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
    batch["response_mask"] = ((column >= starts[:, None]) & (column < lengths[:, None])).long()
    return batch


def token_logprobs(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Log-probability of every token after the first, (B, T-1), and the response mask moved alike."""
    inputs = {key: value for key, value in batch.items() if key != "response_mask"}
    logits = model(**inputs, use_cache=False).logits
    targets = batch["input_ids"][:, 1:]
    logprobs = torch.log_softmax(logits[:, :-1].float(), dim=-1).gather(-1, targets[..., None])[..., 0]
    return logprobs, batch["response_mask"][:, 1:]


def response_ids(tokenizer: Any, text: str) -> Tensor:
    """Token ids of a response with the end-of-sequence token, (T,), int64."""
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id])


@torch.no_grad()
def correct_probability(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], truths: Sequence[str] | None = None, seed: int = 0
) -> Tensor:
    """Probability that sampling at temperature 1 gives exactly the right answer, after a drawn think block, (B,).

    Args:
        model: the policy.
        tokenizer: its tokenizer.
        prompts: what is asked.
        truths: right answers, the prompts' own by default.
        seed: of the think blocks.
    """
    rng = random.Random(seed)
    truths = [prompt.truth for prompt in prompts] if truths is None else list(truths)
    opening = tokenizer.convert_tokens_to_ids("<answer>")
    found = []
    for first in range(0, len(prompts), 64):
        part = prompts[first : first + 64]
        responses = [response_ids(tokenizer, draw_response(truth, rng)) for truth in truths[first : first + 64]]
        batch = collate(model, part, responses)
        logprobs, mask = token_logprobs(model, batch)
        # Everything after <answer>: the answer, its closing tag and the end of the response.
        answering = (batch["input_ids"][:, :-1] == opening).long().cumsum(1) * mask
        found.append((logprobs * answering).sum(1).exp())
    return torch.cat(found)


AnswersOf = Callable[[str], Sequence[str]]
"""Every ground truth that a kind of question can have."""


def noisy_answer(
    prompt: Prompt, noise: float, rng: random.Random, answers_of: AnswersOf = demo_clips.answers_of
) -> str:
    """The right answer, or with probability `noise` one drawn uniformly from all answers of that kind."""
    if rng.random() < noise:
        return rng.choice(answers_of(prompt.kind))
    return prompt.truth


def train_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    seed: int,
    steps: int,
    noise: float,
    mean_thoughts: float,
    peak_lr: float,
    batch_size: int = 48,
    answer_weight: float = 4.0,
    answers_of: AnswersOf = demo_clips.answers_of,
    on_step: Callable[[], None] | None = None,
) -> None:
    """Supervised training on drawn responses.

    Args:
        model: trained in place.
        tokenizer: its tokenizer.
        prompts: the training questions.
        seed: of batches and responses.
        steps: optimisation steps.
        noise: share of answers drawn at random, 0..1. The policy ends up right with a probability of about
            `1 - noise + noise / k` for k possible answers.
        mean_thoughts: mean number of words between the think tags.
        peak_lr: highest learning rate of a one-cycle schedule.
        batch_size: prompts a step.
        answer_weight: weight of the answer's tokens against the mean over all tokens.
        answers_of: what a random answer is drawn from.
        on_step: called after each step.
    """
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_lr, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_lr, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        part = rng.sample(list(prompts), min(batch_size, len(prompts)))
        texts = [draw_response(noisy_answer(prompt, noise, rng, answers_of), rng, mean_thoughts) for prompt in part]
        responses = [response_ids(tokenizer, text) for text in texts]
        logprobs, mask = token_logprobs(model, collate(model, part, responses))
        answering = _after_answer_tag(tokenizer, part, responses, mask)
        loss = -(logprobs * mask).sum() / mask.sum() - answer_weight * (logprobs * answering).sum() / answering.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if on_step:
            on_step()


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """How long the two parts of the warm start are, and how unsure it leaves the policy."""

    answer_steps: int = 130
    soften_steps: int = 30
    noise: float = 0.6
    """Share of answers drawn at random in the second part."""

    @property
    def total_steps(self) -> int:
        """Optimisation steps of both parts."""
        return self.answer_steps + self.soften_steps


def warm_start(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    seed: int,
    plan: WarmStart = WarmStart(),  # noqa: B008
    answers_of: AnswersOf = demo_clips.answers_of,
    on_step: Callable[[], None] | None = None,
) -> None:
    """Right answers first, then answers of which a share is drawn at random.

    The second part keeps what was learned about clips and makes the policy unsure; it also brings think blocks to their
    full length, which the first part leaves out to be quick.

    Args:
        model: trained in place.
        tokenizer: its tokenizer.
        prompts: the training questions.
        seed: of everything drawn.
        plan: lengths of the parts.
        answers_of: what a random answer is drawn from.
        on_step: called after each step.
    """
    model.train()
    parts = ((plan.answer_steps, 0.0, 2.0, 3e-3), (plan.soften_steps, plan.noise, MEAN_THOUGHTS, 1e-3))
    for steps, noise, mean_thoughts, peak_lr in parts:
        train_answers(
            model,
            tokenizer,
            prompts,
            seed=seed,
            steps=steps,
            noise=noise,
            mean_thoughts=mean_thoughts,
            peak_lr=peak_lr,
            answers_of=answers_of,
            on_step=on_step,
        )
    model.eval()


def _after_answer_tag(tokenizer: Any, prompts: Sequence[Prompt], responses: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Mask of the tokens between <answer> and </answer>, shaped like `mask` (B, T-1)."""
    opening, closing = tokenizer.convert_tokens_to_ids(["<answer>", "</answer>"])
    out = torch.zeros_like(mask)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        first = len(prompt.input_ids) + int((response == opening).nonzero()[0]) + 1
        last = len(prompt.input_ids) + int((response == closing).nonzero()[0])
        out[row, first - 1 : last - 1] = 1
    return out


def save_model(model: Any, processor: Any, folder: Path) -> None:
    """Write weights, config, generation config, tokenizer and processor as transformers reads them."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
