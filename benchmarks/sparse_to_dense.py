"""Does sparse-to-dense reach the accuracy of always-dense with fewer frames? Prints one JSON line.

    python benchmarks/sparse_to_dense.py --seeds 0 1 2

Drawn clips of sixteen frames show a colour: the easy ones all the time, the hard ones for two frames alone. A small
Qwen2.5-VL is trained on the spot to name it, at 4, 8 and 16 frames; where the frames that it sees do not show the
colour, nothing tells it the answer. Then ``verl-care eval --strategy sparse_to_dense`` asks about held-out clips.

The same is asked with five answers at 16 frames for every question (always dense), with plain majorities that read as
many frames as sparse-to-dense did, and greedily. Exit status 1 where sparse-to-dense is worse than always-dense by more
than chance, or reads no fewer frames.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from verl_care.data import demo_clips, demo_model
from verl_care.data.records import to_row, write_rows
from verl_care.evaluation.engines import EngineConfig
from verl_care.evaluation.evaluate import EvalConfig, evaluate
from verl_care.evaluation.sparse_to_dense import SparseToDense

FRAMES, FLASH, LEVELS = 16, 2, (4, 8, 16)
EASY_SHARE = 0.6
OPTIONS = [f"{letter}. {colour}" for letter, colour in zip(demo_clips.LETTERS, demo_clips.COLOURS, strict=True)]


def draw_clip(rng: random.Random, path: Path, hard: bool) -> str:
    """Draws a clip and gives the letter of its colour."""
    place = rng.randrange(len(demo_clips.COLOURS))
    rgb = demo_clips.RGB[demo_clips.COLOURS[place]]
    grey = (rng.randrange(20, 90),) * 3
    start = rng.randrange(FRAMES - FLASH + 1)
    shown = range(start, start + FLASH) if hard else range(FRAMES)
    size = (demo_clips.FRAME_SIZE,) * 2
    demo_clips.write_mp4(path, [Image.new("RGB", size, rgb if frame in shown else grey) for frame in range(FRAMES)])
    return demo_clips.LETTERS[place]


def draw_rows(rng: random.Random, folder: Path, count: int) -> list[dict[str, Any]]:
    """Clips with a question about each."""
    rows = []
    for number in range(count):
        hard = number >= count * EASY_SHARE
        clip = folder / f"{number}.mp4"
        letter = draw_clip(rng, clip, hard)
        pixels = {"min_pixels": demo_clips.FRAME_SIZE**2, "max_pixels": demo_clips.FRAME_SIZE**2}
        rows.append(
            to_row(
                data_source="flashes",
                index=number,
                question="\n".join(
                    [demo_clips.QUESTIONS["colour"][0], *OPTIONS, demo_clips.SUFFIXES["multiple choice"]]
                ),
                problem_type="multiple choice",
                ground_truth=letter,
                options=OPTIONS,
                videos=[{"video": str(clip), "nframes": LEVELS[0], **pixels}],
                extra_info={"kind": "colour", "difficulty": "hard" if hard else "easy", "video_id": str(number)},
            )
        )
    return rows


def train(rng: random.Random, folder: Path, seed: int, clips: int, steps: int) -> None:
    """A model that names the colour where the frames show it."""
    clip_folder = folder / "train"
    clip_folder.mkdir()
    rows = draw_rows(rng, clip_folder, clips)
    processor = demo_model.build_processor()
    model = demo_model.build_model(processor.tokenizer, seed)
    prompts = []
    for frames in LEVELS:
        seen = [{**row, "videos": [{**row["videos"][0], "nframes": frames}]} for row in rows]
        prompts += demo_model.encode_records(seen, processor)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    model.train()
    for _ in range(steps):
        part = rng.sample(prompts, 32)
        texts = [f"<think></think><answer>{prompt.truth}</answer>" for prompt in part]
        responses = [demo_model.response_ids(processor.tokenizer, text) for text in texts]
        log_probs, mask = demo_model.token_logprobs(model, demo_model.collate(model, part, responses))
        optimizer.zero_grad(set_to_none=True)
        (-(log_probs * mask).sum() / mask.sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    demo_model.save_model(model.eval(), processor, folder / "model")


def measure(seed: int, clips: int, steps: int, questions: int) -> dict[str, Any]:
    """Figures of one model and its held-out clips."""
    rng = random.Random(seed)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train(rng, folder, seed, clips, steps)
        trained = time.perf_counter()
        (folder / "test").mkdir()
        write_rows(draw_rows(rng, folder / "test", questions), folder / "test.parquet")
        config = EvalConfig(
            engine=EngineConfig(model=str(folder / "model"), batch_size=40),
            data=(str(folder / "test.parquet"),),
            out_dir=str(folder / "run"),
            strategy=SparseToDense(frames=LEVELS, samples=5, max_tokens=24),
        )
        strategies = evaluate(config).results["strategies"]
    kept = ("acc_strict", "average_frames", "average_frames_read", "average_tokens", "decided_share", "difference")
    return {
        "seed": seed,
        "train_seconds": round(trained - started, 1),
        "eval_seconds": round(time.perf_counter() - trained, 1),
        "strategies": {
            name: {key: figures[key] for key in kept if key in figures} for name, figures in strategies.items()
        },
    }


def reached(run: dict[str, Any]) -> bool:
    """Whether sparse-to-dense is not worse than always-dense and reads fewer frames."""
    own = run["strategies"]["sparse_to_dense"]
    dense = next(figures for name, figures in run["strategies"].items() if name.startswith("always dense"))
    return dense["difference"]["verdict"] != "worse" and own["average_frames_read"] < dense["average_frames_read"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--clips", type=int, default=48, help="for training")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--questions", type=int, default=24)
    args = parser.parse_args()
    torch.set_num_threads(1)
    # Standard output is for the one JSON line.
    with contextlib.redirect_stdout(sys.stderr):
        runs = [measure(seed, args.clips, args.steps, args.questions) for seed in args.seeds]
    print(json.dumps({"benchmark": "sparse_to_dense", "frames": LEVELS, "runs": runs}))
    return 0 if all(map(reached, runs)) else 1


if __name__ == "__main__":
    sys.exit(main())
