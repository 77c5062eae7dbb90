"""A task whose answer needs one thought an event: the clip shows coloured events, the question asks for their total.

What the study of the inverted U trains on. No single frame shows the answer, and the warm-started model thinks for a
number of steps that has nothing to do with how many the clip needs: longer thoughts are right more often, and only what
training rewards decides how long they become. This stage makes clips, records and the model; the study itself is
``benchmarks/inverted_u.py``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from verl_care.data import demo_model, tiny_qwen
from verl_care.data.demo_clips import write_mp4
from verl_care.data.records import replace_folder, write_rows

DATA_SOURCE = "tally"
FRAME_SIZE = 28
"""Width and height of a frame in pixels: two frames make one vision token of Qwen2.5-VL."""
MAX_EVENTS = 16
FRAMES_PER_EVENT = 2
CLIP_FPS = 2
"""One second an event."""
MEAN_EVENTS = 6.0
MIN_EVENTS = 2
VALUES = {"red": 1, "green": 2, "blue": 3}
RGB = {"red": (200, 40, 40), "green": (40, 170, 60), "blue": (50, 70, 210), "black": (12, 12, 12)}
NOISE = 10
"""Largest change of a pixel's channel by noise."""
MODULUS = 4
LETTERS = "ABCD"
QUESTIONS = (
    "Total modulo 4?",
    "What is the total modulo 4?",
    "Add the values. What is the total modulo 4?",
    "Red is 1, green is 2, blue is 3. What is the total modulo 4?",
)
"""Of different token counts: verl 0.9.1 fails where all prompts and responses of a batch are of equal length."""
OPTIONS = "A. 0\nB. 1\nC. 2\nD. 3\n"
FULL_TRACE_SHARE = 0.25
"""Share of warm-start traces with one pair for every event that a clip can have."""
MEAN_EXTRA_PAIRS = 4.0
"""Mean of the exponential in the other traces' number of pairs."""
MAX_RESPONSE_TOKENS = 2 * MAX_EVENTS + 6


@dataclass(frozen=True)
class Clip:
    """One clip as a list of events."""

    events: tuple[str, ...]
    """Colours in order; all is black after them."""

    @property
    def total(self) -> int:
        """Sum of the values modulo ``MODULUS``."""
        return self.running_total(len(self.events))

    def running_total(self, pairs: int) -> int:
        """Sum of the first ``pairs`` values modulo ``MODULUS``."""
        return sum(VALUES[colour] for colour in self.events[:pairs]) % MODULUS


def draw_clip(rng: random.Random) -> Clip:
    """A clip whose number of events is geometric with mean ``MEAN_EVENTS``, within MIN_EVENTS..MAX_EVENTS."""
    stop = 1.0 / (MEAN_EVENTS - MIN_EVENTS + 1)
    while True:
        count = MIN_EVENTS
        while rng.random() > stop:
            count += 1
        if count <= MAX_EVENTS:
            return Clip(tuple(rng.choice(tuple(VALUES)) for _ in range(count)))


def render_clip(clip: Clip, rng: random.Random) -> list[Image.Image]:
    """Frames of a clip, each event on ``FRAMES_PER_EVENT`` equal ones, with light pixel noise."""
    noise = np.random.default_rng(rng.getrandbits(64))
    frames = []
    for event in range(MAX_EVENTS):
        colour = clip.events[event] if event < len(clip.events) else "black"
        pixels = np.array(RGB[colour]) + noise.integers(-NOISE, NOISE + 1, (FRAME_SIZE, FRAME_SIZE, 3))
        frames += [Image.fromarray(pixels.clip(0, 255).astype(np.uint8))] * FRAMES_PER_EVENT
    return frames


def make_record(index: int, clip: Clip, path: Path, split: str) -> dict[str, Any]:
    """One row in verl's schema; the wording goes by the index.

    The question stands before the video: how far a thought is from the event that it reads does then not depend on the
    wording.
    """
    text = f"{QUESTIONS[index % len(QUESTIONS)]}\n{OPTIONS}<video>"
    pixels = {"min_pixels": FRAME_SIZE**2, "max_pixels": FRAME_SIZE**2}
    return {
        "data_source": DATA_SOURCE,
        "prompt": [{"role": "user", "content": text}],
        "videos": [{"video": str(path), "nframes": MAX_EVENTS * FRAMES_PER_EVENT, **pixels}],
        "images": [],
        "reward_model": {"style": "rule", "ground_truth": LETTERS[clip.total]},
        "extra_info": {
            "index": index,
            "problem_type": "multiple choice",
            "kind": "tally",
            "split": split,
            "events": list(clip.events),
        },
    }


def write_records(folder: Path, split: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Draws clips into ``folder`` and gives their records."""
    rng = random.Random(f"{split}/{seed}")
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(count):
        clip, path = draw_clip(rng), folder / f"{split}{index}.mp4"
        write_mp4(path, render_clip(clip, rng), fps=CLIP_FPS)
        rows.append(make_record(index, clip, path, split))
    return rows


def draw_pairs(rng: random.Random) -> int:
    """How many pairs a warm-start trace has; independent of the clip."""
    if rng.random() < FULL_TRACE_SHARE:
        return MAX_EVENTS
    return min(MAX_EVENTS, 1 + int(rng.expovariate(1.0 / MEAN_EXTRA_PAIRS)))


def trace(clip: Clip, pairs: int) -> str:
    """A response that looks at the first ``pairs`` events: colour and running total of each, then the answer."""
    seen = [*clip.events, *["black"] * MAX_EVENTS][:pairs]
    thoughts = " ".join(f"{colour} {clip.running_total(i + 1)}" for i, colour in enumerate(seen))
    return f"<think>{thoughts}</think><answer>{LETTERS[clip.running_total(pairs)]}</answer>"


def vocabulary() -> list[str]:
    """Every word of questions and traces, after the unknown word and the tags."""
    texts = [*QUESTIONS, OPTIONS, "user assistant system black", *VALUES, *LETTERS, "0 1 2 3"]
    words = {word for text in texts for word in demo_model._WORD.findall(text)} | {"\n"}
    return [demo_model.UNKNOWN, *demo_model.TAGS, *sorted(words)]


def build_processor() -> Any:
    """Qwen2.5-VL's processor for frames of this size, over the task's own words."""
    return demo_model.build_processor(vocabulary(), max_pixels=FRAME_SIZE**2)


def build_model(tokenizer: Any, seed: int) -> Any:
    """A Qwen2.5-VL of under a million parameters that can tell the events of a clip apart by their time."""
    return tiny_qwen.build_model(
        tokenizer,
        text={
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 512,
            "tie_word_embeddings": False,
            # Most of the rotation goes by time: space is one token wide here.
            "rope_parameters": {"mrope_section": [12, 2, 2]},
            "use_sliding_window": False,
        },
        vision={
            "depth": 1,
            "window_size": 112,
            "fullatt_block_indexes": [0],
            # An event is two positions after the one before, as a pair of the trace is.
            "tokens_per_second": 2,
        },
        seed=seed,
    )


def clip_of(record: dict[str, Any]) -> Clip:
    """The clip that a record is about."""
    return Clip(tuple(record["extra_info"]["events"]))


def warm_start(
    model: Any,
    tokenizer: Any,
    records: Sequence[dict[str, Any]],
    prompts: Sequence[demo_model.Prompt],
    *,
    seed: int,
    steps: int = 150,
    batch_size: int = 32,
    peak_lr: float = 3e-3,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Supervised training on traces whose number of pairs is independent of the clip.

    Args:
        model: trained in place.
        tokenizer: its tokenizer.
        records: the warm start's records.
        prompts: the same records as the model sees them.
        seed: of batches and traces.
        steps: optimisation steps.
        batch_size: traces a step.
        peak_lr: highest learning rate of a one-cycle schedule.
        on_step: called with the number of steps made and the loss.
    """
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_lr, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_lr, total_steps=steps, pct_start=0.1)
    model.train()
    for step in range(steps):
        chosen = rng.sample(range(len(records)), batch_size)
        texts = [trace(clip_of(records[i]), draw_pairs(rng)) for i in chosen]
        responses = [demo_model.response_ids(tokenizer, text) for text in texts]
        batch = demo_model.collate(model, [prompts[i] for i in chosen], responses)
        log_probs, mask = demo_model.token_logprobs(model, batch)
        loss = -(log_probs * mask).sum() / mask.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        on_step(step + 1, float(loss.detach()))
    model.eval()


@torch.no_grad()
def accuracy_at(
    model: Any, processor: Any, prompts: Sequence[demo_model.Prompt], pairs: Sequence[int], *, batch_size: int = 32
) -> dict[int, float]:
    """Accuracy of the most likely answer after think blocks of given numbers of pairs, which the model writes itself.

    A block is cut, or kept open, at exactly that many pairs: the model chooses among colours and totals inside it, and
    among letters as the answer.

    Args:
        model: the policy.
        processor: its processor.
        prompts: what is asked.
        pairs: numbers of pairs, each at least 1.
        batch_size: prompts a forward pass; transformers 5.9.0 positions no more than a row has tokens.
    """
    ids = processor.tokenizer.convert_tokens_to_ids
    colours, totals = ids([*VALUES, "black"]), ids([str(i) for i in range(MODULUS)])
    closing = torch.tensor(ids(["</think>", "<answer>"]))
    right = dict.fromkeys(pairs, 0)
    for first in range(0, len(prompts), batch_size):
        part = prompts[first : first + batch_size]
        thoughts = torch.full((len(part), 1), ids("<think>"))
        for pair in range(1, max(pairs) + 1):
            for allowed in (colours, totals):
                chosen = _choose(model, part, thoughts, allowed)
                thoughts = torch.cat([thoughts, chosen[:, None]], dim=1)
            if pair in right:
                asked = torch.cat([thoughts, closing.expand(len(part), -1)], dim=1)
                truths = torch.tensor(ids([prompt.truth for prompt in part]))
                right[pair] += int((_choose(model, part, asked, ids(list(LETTERS))) == truths).sum())
    return {pair: count / len(prompts) for pair, count in right.items()}


def _choose(model: Any, prompts: Sequence[demo_model.Prompt], responses: torch.Tensor, allowed: Sequence[int]) -> Any:
    """The most likely of the allowed tokens after each response (B, T), (B,)."""
    batch = demo_model.collate(model, prompts, list(responses))
    batch.pop("response_mask")
    last = batch["attention_mask"].sum(1) - 1
    logits = model(**batch, use_cache=False).logits[torch.arange(len(prompts)), last]
    return torch.tensor(allowed)[logits[:, list(allowed)].argmax(1)]


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much a build makes."""

    train_clips: int = 1120
    """Each is asked about once in 140 steps of 8 prompts."""
    warm_clips: int = 480
    """For the warm start alone."""
    held_out_clips: int = 256
    """For the accuracy at given numbers of pairs."""
    warm_steps: int = 150


VERSION = 3
"""Of what a build makes; a folder of another version is built anew."""
FORCED_PAIRS = (1, 2, 4, 8, 12, 16)


def build_folder(
    folder: Path,
    *,
    seed: int,
    size: Size = Size(),  # noqa: B008
    on_progress: Callable[[str, int, int], None] = lambda part, done, total: None,
) -> dict[str, Any]:
    """Makes train.parquet, clips/ and the warm-started model/ in a folder, unless they stand already.

    Args:
        folder: where to; built beside its place and moved there whole.
        seed: of clips and model.
        size: how much to make.
        on_progress: told the part's name, how much of it is done and how much there is.

    Returns:
        What the build was made of, and ``accuracy``: of the model on held-out clips at ``FORCED_PAIRS``.
    """
    manifest = folder / "manifest.json"
    identity = {"version": VERSION, "seed": seed, **asdict(size)}
    if manifest.exists():
        built = json.loads(manifest.read_text(encoding="utf-8"))
        if {name: built.get(name) for name in identity} == identity:
            return built
    with tiny_qwen.one_thread(), replace_folder(folder) as partial:
        built = {**identity, "accuracy": _fill_folder(partial, folder, seed, size, on_progress)}
        (partial / manifest.name).write_text(json.dumps(built), encoding="utf-8")
    return built


def _fill_folder(partial: Path, folder: Path, seed: int, size: Size, on_progress: Callable) -> dict[str, float]:
    counts = {"train": size.train_clips, "warm": size.warm_clips, "held_out": size.held_out_clips}
    records, done = {}, 0
    for split, count in counts.items():
        records[split] = write_records(partial / "clips", split, count, seed)
        done += count
        on_progress("drawing clips", done, sum(counts.values()))
    processor = build_processor()
    model = build_model(processor.tokenizer, seed)

    def encode(split: str) -> list[demo_model.Prompt]:
        prompts: list[demo_model.Prompt] = []
        for first in range(0, counts[split], 32):
            prompts += demo_model.encode_records(records[split][first : first + 32], processor)
            on_progress(f"reading clips ({split})", len(prompts), counts[split])
        return prompts

    warm_start(
        model,
        processor.tokenizer,
        records["warm"],
        encode("warm"),
        seed=seed,
        steps=size.warm_steps,
        batch_size=min(32, size.warm_clips),
        on_step=lambda step, loss: on_progress("warm start", step, size.warm_steps),
    )
    demo_model.save_model(model, processor, partial / "model")
    for row in records["train"]:
        row["videos"][0]["video"] = row["videos"][0]["video"].replace(f"{partial}/", f"{folder}/", 1)
    write_rows(records["train"], partial / "train.parquet")
    accuracy = accuracy_at(model, processor, encode("held_out"), FORCED_PAIRS)
    return {str(pairs): value for pairs, value in accuracy.items()}
