"""A tiny model that is right, wrong or unsure as it was taught, by the wording of a question; and questions for it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from verl_care.data import demo_clips, demo_model
from verl_care.data.records import to_row

settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")

WORDINGS = dict(zip(("easy", "medium", "hard"), demo_clips.QUESTIONS["colour"], strict=True))
"""Difficulty -> question. The model says A to the easy ones, A or B to the medium ones, and B to the hard ones; the
right answer is A, a red clip, each time."""

OPTIONS = [f"{letter}. {colour}" for letter, colour in zip("ABCD", demo_clips.COLOURS, strict=True)]


def row_of(difficulty: str, index: int, clip: Path | str, **changes) -> dict:
    """A question of this difficulty about a clip, in the form of a prepared record."""
    question = f"{WORDINGS[difficulty]}\n" + "\n".join(OPTIONS) + "\nAnswer with a letter."
    pixels = {"min_pixels": demo_clips.FRAME_SIZE**2, "max_pixels": demo_clips.FRAME_SIZE**2}
    extra_info = {"video_id": Path(clip).stem, "difficulty": difficulty, **changes.pop("extra_info", {})}
    values = {
        "data_source": "video_mme",
        "index": index,
        "question": question,
        "problem_type": "multiple choice",
        "ground_truth": "A",
        "options": OPTIONS,
        "videos": [{"video": str(clip), "nframes": demo_clips.SAMPLED_FRAMES, **pixels}],
        "extra_info": extra_info,
    }
    return to_row(**{**values, **changes})


@pytest.fixture(scope="session")
def make_row():
    """`row_of`: tests of this folder are modules of their own."""
    return row_of


@dataclass(frozen=True)
class Taught:
    """The model and its clips."""

    model: Path
    clips: tuple[Path, ...]


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Taught:
    """A Qwen2.5-VL of half a million parameters after 90 supervised steps, and six clips."""
    folder = tmp_path_factory.mktemp("taught")
    rng = random.Random(0)
    clips = []
    for number in range(6):
        clips.append(folder / f"clip{number}.mp4")
        demo_clips.write_clip(clips[-1], demo_clips.draw_spec(rng))
    processor = demo_model.build_processor()
    model = demo_model.build_model(processor.tokenizer, seed=0)
    rows = [row_of(d, n, clip) for n, (d, clip) in enumerate((d, c) for d in WORDINGS for c in clips)]
    for row in rows:
        row["extra_info"]["kind"] = "colour"
    prompts = demo_model.encode_records(rows, processor)
    difficulties = [row["extra_info"]["difficulty"] for row in rows]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model.train()
    for _ in range(90):
        part = rng.sample(range(len(prompts)), 12)
        answers = [{"easy": "A", "medium": rng.choice("AB"), "hard": "B"}[difficulties[i]] for i in part]
        texts = [demo_model.draw_response(answer, rng, 3.0) for answer in answers]
        responses = [demo_model.response_ids(processor.tokenizer, text) for text in texts]
        batch = demo_model.collate(model, [prompts[i] for i in part], responses)
        log_probs, mask = demo_model.token_logprobs(model, batch)
        optimizer.zero_grad()
        (-(log_probs * mask).sum() / mask.sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    torch.set_num_threads(threads)
    demo_model.save_model(model, processor, folder / "model")
    return Taught(model=folder / "model", clips=tuple(clips))
