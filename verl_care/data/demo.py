"""The demo's folder: clips, questions and a warm-started model, built once and whole.

The folder is built beside its place and then moved there, with a manifest of what it was built from; a killed build
leaves nothing that a later one would take for complete.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from verl_care.data.demo_clips import (
    CLIP_FRAMES,
    CUTS,
    DATA_SOURCE,
    FRAME_SIZE,
    GRADED_KINDS,
    RGB,
    SIGNS,
    SWAPPED_SOURCE,
    USER_KINDS,
    VIDEO_KINDS,
    ClipSpec,
    ask,
    draw_spec,
    make_record,
    render_frame,
    render_sign,
    write_clip,
    write_mp4,
)
from verl_care.data.records import replace_folder, write_rows

__all__ = ["DATA_SOURCE", "SWAPPED_SOURCE", "DemoError", "build_assets", "demo_folder"]

VERSION = 11
"""Of what a build makes; a folder of another version is built anew."""

TRAIN_CLIPS, VAL_CLIPS = 180, 48
"""Drawn clips; the two sets have none in common."""
QUESTIONS_A_CLIP = {"train": 3, "val": 2}
"""Questions about each drawn clip. Every kind in training, for the vision tower learns from all of them at once."""
MIN_RECORDS = 64
MANIFEST = "manifest.json"
CUT_THRESHOLD = 40.0
"""Mean absolute difference of two neighbouring frames, in grey levels of 255, from which there was a cut between."""
PIECE_SECONDS = 2.0
MAX_PIECES = 16
"""Of one of the user's videos."""
VIDEO_ENDINGS = (".mp4", ".mov", ".mkv", ".webm")

Progress = Callable[[str, int, int], None]
"""Called with the part's name, how much of it is done, and how much there is."""


class DemoError(RuntimeError):
    """The demo's assets cannot be made; the message says why and what to do."""


def demo_folder() -> Path:
    """Where the assets live: ``VERL_CARE_DEMO_DIR``, or ``verl_care/demo`` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "verl_care" / "demo"
    return Path(os.environ.get("VERL_CARE_DEMO_DIR") or default).expanduser().resolve()


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a build is; the tests make small ones."""

    train_clips: int = TRAIN_CLIPS
    val_clips: int = VAL_CLIPS
    warm_start_scale: float = 1.0
    """Factor on the steps of the warm start."""


def build_assets(
    *,
    seed: int = 0,
    video_dir: Path | None = None,
    folder: Path | None = None,
    size: Size = Size(),  # noqa: B008
    on_progress: Progress = lambda part, done, total: None,
) -> Path:
    """Makes train.parquet, val.parquet, clips/ and model/, unless they stand already.

    Args:
        seed: of clips, questions and model.
        video_dir: folder with the user's own videos; small copies of their pieces then become the clips.
        folder: where to; by default ``demo_folder()``, with a suffix for other seeds and for the user's videos.
        size: how much to make.
        on_progress: told about each part.

    Returns:
        The folder.

    Raises:
        DemoError: no video in ``video_dir``, or one that cannot be read; names it.
    """
    videos = _list_videos(video_dir)
    identity = {
        "version": VERSION,
        "seed": seed,
        "size": vars(size),
        "videos": [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in videos],
    }
    if folder is None:
        folder = demo_folder()
        if videos:
            digest = hashlib.blake2b(json.dumps(identity["videos"]).encode(), digest_size=4).hexdigest()
            folder = folder.with_name(f"{folder.name}-videos-{digest}-seed{seed}")
        elif seed != 0:
            folder = folder.with_name(f"{folder.name}-seed{seed}")
    if _manifest(folder) == identity:
        return folder
    if folder.exists() and any(folder.iterdir()) and _manifest(folder) is None:
        raise DemoError(
            f"{folder}: is not empty and was not made by the demo; set VERL_CARE_DEMO_DIR to another folder"
        )
    with replace_folder(folder) as partial:
        (partial / "clips").mkdir(parents=True)
        drawn, held_out = _drawn_records(partial, seed, size, on_progress)
        records = (drawn, held_out)
        if videos:
            records = _user_records(videos, partial, seed, on_progress)
        # The drawn clips teach the format and the words even where the user's clips are few.
        _train_model([*drawn, *records[0]] if videos else drawn, partial, seed, size, on_progress)
        for name, rows in zip(("train", "val"), records, strict=True):
            write_rows([_moved(row, partial, folder) for row in rows], partial / f"{name}.parquet")
        (partial / MANIFEST).write_text(json.dumps(identity), encoding="utf-8")
    return folder


def _manifest(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _moved(row: dict[str, Any], partial: Path, folder: Path) -> dict[str, Any]:
    """The row with media of the folder under construction named by where they will be."""
    moved = dict(row)
    for column, key in (("videos", "video"), ("images", "image")):
        moved[column] = [{**item, key: item[key].replace(f"{partial}/", f"{folder}/", 1)} for item in row[column]]
    return moved


def _drawn_records(
    folder: Path, seed: int, size: Size, on_progress: Progress
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training and held-out records about clips drawn into ``folder``, and the held-out ones with clips swapped."""
    rng = random.Random(seed)
    total = size.train_clips + size.val_clips
    made = 0
    specs: dict[str, ClipSpec] = {}

    def draw(count: int, split: str) -> list[dict[str, Any]]:
        nonlocal made
        rows: list[dict[str, Any]] = []
        for number in range(count):
            spec = draw_spec(rng)
            while spec in specs.values():
                spec = draw_spec(rng)
            clip = folder / "clips" / f"{split}{number}.mp4"
            specs[str(clip)] = spec
            write_clip(clip, spec)
            for kind in rng.sample(VIDEO_KINDS, QUESTIONS_A_CLIP[split]):
                rows.append(_record(rng, len(rows), kind, spec.answer(kind), split, video=clip))
            if number % 2 == 0:
                rows += _other_media(rng, len(rows), folder, split, spec)
            made += 1
            on_progress("drawing clips", made, total)
        return rows

    train, val = draw(size.train_clips, "train"), draw(size.val_clips, "val")
    return train, val + _swapped(val, specs, rng)


def _record(rng: random.Random, index: int, kind: str, answer: str, split: str, **media: Any) -> dict[str, Any]:
    text, truth = ask(kind, answer, rng, "".join(f"<{name}>" for name in media))
    return make_record(index=index, kind=kind, text=text, truth=truth, split=split, **media)


def _other_media(rng: random.Random, index: int, folder: Path, split: str, spec: ClipSpec) -> list[dict[str, Any]]:
    """Two records about images and one about nothing but numbers."""
    picture, sign = (folder / "clips" / f"{split}{index}_{name}.png" for name in ("picture", "sign"))
    words = rng.choice(SIGNS)
    render_frame(spec, rng.random()).save(picture)
    render_sign(words, rng).save(sign)
    a, b = rng.randint(1, 3), rng.randint(1, 3)
    text, truth = ask("sum", str(a + b), rng, "", a=a, b=b)
    return [
        _record(rng, index, "image_colour", spec.colour, split, image=picture),
        _record(rng, index + 1, "sign", words, split, image=sign),
        make_record(index=index + 2, kind="sum", text=text, truth=truth, split=split),
    ]


def _swapped(rows: Sequence[dict[str, Any]], specs: Mapping[str, ClipSpec], rng: random.Random) -> list[dict[str, Any]]:
    """Questions and answers as they are about another clip: a policy that sees the clip is right by chance only.

    Graded kinds are left out, for a wrong answer to them may earn something.
    """
    asked = [row for row in rows if row["videos"] and row["extra_info"]["kind"] not in GRADED_KINDS]
    clips = sorted({row["videos"][0]["video"] for row in asked})
    if len(clips) < 2:
        return []
    swapped = []
    for row in asked:
        clip = row["videos"][0]["video"]
        other = rng.choice([name for name in clips if name != clip])
        kind = row["extra_info"]["kind"]
        same = specs[other].answer(kind) == specs[clip].answer(kind)
        swapped.append(
            {
                **row,
                "data_source": SWAPPED_SOURCE,
                "videos": [{**row["videos"][0], "video": other}],
                "extra_info": {**row["extra_info"], "same_answer": same},
            }
        )
    return swapped


def _list_videos(video_dir: Path | None) -> list[Path]:
    if video_dir is None:
        return []
    videos = sorted(path.resolve() for path in Path(video_dir).rglob("*") if path.suffix.lower() in VIDEO_ENDINGS)
    if not videos:
        raise DemoError(
            f"{video_dir}: holds no video ({', '.join(VIDEO_ENDINGS)}); name a folder with some of your own"
        )
    return videos


def describe_frames(frames: np.ndarray) -> tuple[str, int]:
    """The answers to the questions about a user's clip, from its frames alone.

    Args:
        frames: (T, H, W, 3), 0..255.

    Returns:
        The colour, of the four that the demo knows, that most of the more coloured half of the pixels is nearest to,
        and the number of cuts between neighbouring frames, at most 3.
    """
    pixels = frames.reshape(-1, 3).astype(np.float64)
    spread = pixels.max(1) - pixels.min(1)
    coloured = pixels[spread >= np.quantile(spread, 0.5)]
    names = list(RGB)
    # Directions of colour only: how bright a clip is says nothing about its hue.
    palette = np.array([RGB[name] for name in names], dtype=np.float64)
    palette = palette - palette.mean(1, keepdims=True)
    centred = coloured - coloured.mean(1, keepdims=True)
    nearest = (centred @ (palette / np.linalg.norm(palette, axis=1, keepdims=True)).T).argmax(1)
    colour = names[int(np.bincount(nearest, minlength=len(names)).argmax())]
    jumps = np.abs(np.diff(frames.astype(np.float64), axis=0)).mean(axis=(1, 2, 3))
    return colour, min(int((jumps >= CUT_THRESHOLD).sum()), CUTS[-1])


def cut_pieces(path: Path) -> list[np.ndarray]:
    """Pieces of a user's video, each CLIP_FRAMES small frames spread over about PIECE_SECONDS.

    Args:
        path: a video.

    Returns:
        1 to MAX_PIECES arrays, (CLIP_FRAMES, FRAME_SIZE, FRAME_SIZE, 3), uint8.

    Raises:
        DemoError: the video cannot be read, or has too few frames; names it.
    """
    from verl_care.data.video import VideoError, decode_frames, probe

    try:
        total, fps = probe(str(path))
        if total < CLIP_FRAMES:
            raise DemoError(f"{path}: has {total} frames; the demo needs {CLIP_FRAMES}. Remove it from the folder")
        pieces = min(max(round(total / fps / PIECE_SECONDS), 1), MAX_PIECES, total // CLIP_FRAMES)
        wanted = np.linspace(0, total - 1, pieces * CLIP_FRAMES).round().astype(int).tolist()
        frames = decode_frames(str(path), wanted).permute(0, 2, 3, 1).numpy()
    except VideoError as error:
        raise DemoError(f"{error}. Remove it from the folder") from None
    small = np.stack(
        [np.asarray(Image.fromarray(frame).resize((FRAME_SIZE, FRAME_SIZE), Image.Resampling.BOX)) for frame in frames]
    )
    return list(small.reshape(pieces, CLIP_FRAMES, FRAME_SIZE, FRAME_SIZE, 3))


def _user_records(
    videos: Sequence[Path], folder: Path, seed: int, on_progress: Progress
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Records about pieces of the user's videos, written small into ``folder``; one video in four is held out.

    With fewer than four videos it is one piece in four, and with a single piece that piece itself.
    """
    rng = random.Random(seed)
    asked: dict[str, list[tuple[str, str, Path]]] = {"train": [], "val": []}
    pieces = 0
    for number, path in enumerate(videos):
        for piece in cut_pieces(path):
            held_out = (number if len(videos) >= 4 else pieces) % 4 == 3
            clip = folder / "clips" / f"user{pieces}.mp4"
            write_mp4(clip, [Image.fromarray(frame) for frame in piece])
            colour, cuts = describe_frames(piece)
            questions = zip(USER_KINDS, (colour, str(cuts)), strict=True)
            asked["val" if held_out else "train"] += [(kind, answer, clip) for kind, answer in questions]
            pieces += 1
        on_progress("reading your clips", number + 1, len(videos))
    asked["val"] = asked["val"] or asked["train"]
    # A few clips are asked about again and again, in other words: training draws batches of 16 prompts.
    asked["train"] *= math.ceil(MIN_RECORDS / len(asked["train"]))
    train, val = (
        [_record(rng, i, kind, answer, split, video=path) for i, (kind, answer, path) in enumerate(asked[split])]
        for split in ("train", "val")
    )
    return train, val


def _train_model(records: Sequence[dict[str, Any]], folder: Path, seed: int, size: Size, on_progress: Progress) -> None:
    """The warm start on the training records, saved under ``folder/model``."""
    from verl_care.data import demo_model, tiny_qwen

    processor = demo_model.build_processor()
    model = demo_model.build_model(processor.tokenizer, seed)
    plan = demo_model.WarmStart()
    names = ("answer_steps", "soften_steps")
    plan = replace(plan, **{name: max(1, round(getattr(plan, name) * size.warm_start_scale)) for name in names})
    prompts: list[demo_model.Prompt] = []
    for first in range(0, len(records), 64):
        prompts += demo_model.encode_records(records[first : first + 64], processor)
        on_progress("reading clips", len(prompts), len(records))
    done = 0

    def on_step() -> None:
        nonlocal done
        done += 1
        on_progress("warm start", done, plan.total_steps)

    with tiny_qwen.one_thread():
        demo_model.warm_start(model, processor.tokenizer, prompts, seed=seed, plan=plan, on_step=on_step)
    demo_model.save_model(model, processor, folder / "model")
