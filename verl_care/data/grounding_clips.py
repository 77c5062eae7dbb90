"""A small task for the rewards of answers with times: clips that show their own clock, and questions of three kinds.

    python -m verl_care.data.grounding_clips outputs/grounding/temporal_rlt

A colour is seen for two to four of a clip's eight seconds, above a row of cells of which the one of the second is lit,
as a burned-in time code tells it: each frame says by itself what is seen and when, which a vision tower of this size
learns within seconds. The records ask when (temporal grounding), what (multiple choice) and both (grounded QA); the
warm-started model knows how to answer and is unsure. ``docs/grounding.md`` trains on them with the recipe
``temporal_rlt``.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from verl_care.data import demo_model, tiny_qwen
from verl_care.data.demo_clips import LETTERS, RGB, write_mp4
from verl_care.data.records import Row, replace_folder, to_row, write_rows
from verl_care.rewards.scorer import GROUNDED_QA, GROUNDING

DATA_SOURCE = "grounding_clips"
"""With the kind of question behind it, so that validation tells them apart."""
FRAME_SIZE = 28
"""Width and height of a frame in pixels: two frames make one vision token of Qwen2.5-VL."""
SECONDS = 8
CLIP_FPS = 2
"""As Temporal-RLT samples videos: one vision token a second."""
SPAN_SECONDS = (2, 3, 4)
"""How long a colour may be seen."""
EMPTY = (60, 60, 60)
NOISE = 10
"""Largest change of a pixel's channel by noise."""
CELL = FRAME_SIZE // 4
"""Width of a cell of the clock, which has two rows of four."""

KINDS = {"when": GROUNDING, "what": "multiple choice", "both": GROUNDED_QA}
"""Kind of question -> problem type."""
QUESTIONS = {
    "when": ("When is a colour seen?", "When does the clip show a colour?", "From when to when is there a colour?"),
    "what": ("Which colour is seen?", "Which colour does the clip show?", "Name the colour."),
    "both": ("Which colour is seen, and when?", "Which colour does the clip show, and when?", "Name colour and time."),
}
"""Of different token counts: verl 0.9.1 fails where all prompts and responses of a batch are of equal length."""
FORMS = {
    "when": "Answer with seconds: a to b.",
    "what": "Answer with a letter.",
    "both": "Answer with a letter; seconds: a to b.",
}
OPTIONS = tuple(f"{letter}. {colour}" for letter, colour in zip(LETTERS, RGB, strict=True))

WARM_START = demo_model.WarmStart(answer_steps=140, soften_steps=30, noise=0.6)


@dataclass(frozen=True)
class Clip:
    """What one clip shows."""

    colour: str
    start: int
    """Second in which the colour appears."""
    end: int
    """Second in which it is gone."""

    def answer(self, kind: str) -> str:
        """The right answer to a kind of question."""
        letter, span = LETTERS[list(RGB).index(self.colour)], f"{self.start} to {self.end}"
        return {"when": span, "what": letter, "both": f"{letter}; {span}"}[kind]


CLIPS = tuple(
    Clip(colour, start, start + length)
    for colour, length in itertools.product(RGB, SPAN_SECONDS)
    for start in range(SECONDS - length + 1)
)
"""All that can be seen."""


def answers_of(kind: str) -> list[str]:
    """Every right answer that a kind of question can have."""
    return sorted({clip.answer(kind) for clip in CLIPS})


def render_clip(clip: Clip, rng: random.Random) -> list[Image.Image]:
    """Frames of a clip, all of a second equal: the upper half in the colour or empty, the clock below it."""
    noise = np.random.default_rng(rng.getrandbits(64))
    frames = []
    for second in range(SECONDS):
        pixels = np.zeros((FRAME_SIZE, FRAME_SIZE, 3), dtype=int)
        seen = clip.start <= second < clip.end
        pixels[: FRAME_SIZE // 2] = RGB[clip.colour] if seen else EMPTY
        row, column = divmod(second, 4)
        top, left = FRAME_SIZE // 2 + row * CELL, column * CELL
        pixels[top : top + CELL, left : left + CELL] = 255
        pixels += noise.integers(-NOISE, NOISE + 1, pixels.shape)
        frames += [Image.fromarray(pixels.clip(0, 255).astype(np.uint8))] * CLIP_FPS
    return frames


def make_record(index: int, kind: str, clip: Clip, path: Path, split: str) -> Row:
    """One row in verl's schema; the wording goes by the index."""
    options = () if kind == "when" else OPTIONS
    question = QUESTIONS[kind][index // len(KINDS) % len(QUESTIONS[kind])]
    return to_row(
        data_source=f"{DATA_SOURCE}_{kind}",
        index=index,
        question="\n".join([question, *options, FORMS[kind]]),
        problem_type=KINDS[kind],
        options=options,
        ground_truth=clip.answer(kind),
        # min_pixels: qwen-vl-utils would otherwise enlarge a frame to 128 vision tokens.
        videos=[{"video": str(path), "fps": CLIP_FPS, "min_pixels": FRAME_SIZE**2, "max_pixels": FRAME_SIZE**2}],
        extra_info={"kind": kind, "split": split, "duration": float(SECONDS)},
    )


def write_records(folder: Path, split: str, count: int, seed: int) -> list[Row]:
    """Draws clips into ``folder`` and gives the records about them, one of each kind a clip."""
    rng = random.Random(f"{split}/{seed}")
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for number in range(count):
        clip, path = rng.choice(CLIPS), folder / f"{split}{number}.mp4"
        write_mp4(path, render_clip(clip, rng), fps=CLIP_FPS)
        rows += [make_record(len(rows) + i, kind, clip, path, split) for i, kind in enumerate(KINDS)]
    return rows


def build_processor() -> Any:
    """Qwen2.5-VL's processor for frames of this size, over the task's own words."""
    texts = [*(text for wordings in QUESTIONS.values() for text in wordings), *FORMS.values(), *OPTIONS]
    texts += ["user assistant system \n", *demo_model.THOUGHTS, " ".join(map(str, range(SECONDS + 1)))]
    words = {word for text in texts for word in demo_model._WORD.findall(text)}
    return demo_model.build_processor([demo_model.UNKNOWN, *demo_model.TAGS, *sorted(words)], max_pixels=FRAME_SIZE**2)


def build_folder(
    folder: Path,
    *,
    seed: int,
    train_clips: int = 96,
    dev_clips: int = 24,
    plan: demo_model.WarmStart = WARM_START,
    on_progress: Callable[[str, int, int], None] = lambda part, done, total: None,
) -> None:
    """Makes train.parquet, dev.parquet, clips/ and the warm-started model/ in a folder.

    Args:
        folder: a new one; built beside its place and moved there whole.
        seed: of clips and model.
        train_clips: clips to train on, the warm start's too.
        dev_clips: held-out clips.
        plan: of the warm start.
        on_progress: told the part's name, how much of it is done and how much there is.

    Raises:
        FileExistsError: the folder is there already.
    """
    if folder.exists():
        raise FileExistsError(f"{folder}: is there already; remove it, or name another folder")
    with tiny_qwen.one_thread(), replace_folder(folder) as partial:
        rows = {}
        for split, count in (("train", train_clips), ("dev", dev_clips)):
            rows[split] = write_records(partial / "clips", split, count, seed)
            on_progress(f"drawing clips ({split})", count, count)
        _warm_start(rows["train"], partial / "model", seed, plan, on_progress)
        for split, part in rows.items():
            for row in part:
                row["videos"][0]["video"] = str(folder / "clips" / Path(str(row["videos"][0]["video"])).name)
            write_rows(part, partial / f"{split}.parquet")


def _warm_start(
    rows: Sequence[Row], folder: Path, seed: int, plan: demo_model.WarmStart, on_progress: Callable
) -> None:
    processor = build_processor()
    model = demo_model.build_model(processor.tokenizer, seed)
    steps = itertools.count(1)
    demo_model.warm_start(
        model,
        processor.tokenizer,
        demo_model.encode_records([dict(row) for row in rows], processor),
        seed=seed,
        plan=plan,
        answers_of=answers_of,
        on_step=lambda: on_progress("warm start", next(steps), plan.total_steps),
    )
    demo_model.save_model(model, processor, folder)


def main() -> int:
    """Builds a folder, with a bar for each part."""
    from rich.progress import Progress

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new folder; named temporal_rlt, its parent is VERL_CARE_DATA_DIR")
    parser.add_argument("--seed", type=int, default=0, help="of clips and model")
    args = parser.parse_args()
    tasks: dict[str, Any] = {}
    try:
        with Progress() as progress:

            def on_progress(part: str, done: int, total: int) -> None:
                if part not in tasks:
                    tasks[part] = progress.add_task(part, total=total)
                progress.update(tasks[part], completed=done)

            build_folder(args.folder.resolve(), seed=args.seed, on_progress=on_progress)
    except FileExistsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
