"""What the demo asks: small moving shapes drawn into real mp4 files, and questions about them with known answers.

This stage only draws and writes records; the model that answers them is `demo_model`, the folder they live in `demo`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
from PIL import Image, ImageDraw, ImageFont

FRAME_SIZE = 56
"""Width and height of a clip in pixels: 2 x 2 vision tokens of Qwen2.5-VL (28 px each) a pair of frames."""
CLIP_FRAMES = 8
CLIP_FPS = 4
SAMPLED_FRAMES = 4
"""Frames that the model sees of a clip (`nframes` of the video dict)."""

RGB = {"red": (225, 35, 35), "green": (40, 190, 60), "blue": (50, 80, 235), "yellow": (235, 215, 40)}
COLOURS = tuple(RGB)
SHAPES = ("square", "ring", "cross")
MOTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SHAPE_WIDTH = 36
"""Width of a shape in pixels. Large on purpose: a vision tower this small sees it within seconds of training."""
SHADES = (5, 25, 45)
"""Brightness of the background in percent."""
PLACES = (0.0, 0.5, 1.0)
"""Places of a shape across and along its way. Few on purpose: a tower this small has to learn each of them."""
SIGNS = ("go left", "stop now", "exit here", "taxi rank")
LETTERS = "ABCD"

DATA_SOURCE = "care_demo"
SWAPPED_SOURCE = "care_demo_swapped"

# Several wordings a kind: the prompts of a batch must differ in length (see `records_of_clip`).
QUESTIONS: dict[str, tuple[str, ...]] = {
    "colour": ("What colour is it?", "Which colour does the thing in the clip have?", "Name the colour of the shape."),
    "shape": ("What shape is it?", "Which shape does the thing in the clip have?", "Name the shape in the clip."),
    "motion": ("Where does it go?", "To which side does the thing in the clip go?", "Name the way it goes."),
    "shade": ("How bright is it behind?", "How many percent bright is the background?", "Give the background's shade."),
    "caption": ("What does the clip show?", "Describe the clip.", "Describe what is in the clip."),
    "image_colour": ("What colour is it?", "Which colour does the thing in the image have?", "Name the colour."),
    "sign": ("What does the sign say?", "Read the sign.", "Read the words in the image."),
    "sum": ("How much is {a} + {b}?", "Give the sum of {a} and {b}.", "{a} + {b} =?"),
    "clip_colour": ("Which colour is seen most?", "Which colour does the clip show most?", "Name the main colour."),
    "clip_cuts": ("How many cuts are there?", "How many cuts does the clip show?", "Count the cuts."),
}
PROBLEM_TYPES = {
    "colour": "multiple choice",
    "shape": "multiple choice",
    "motion": "multiple choice",
    "image_colour": "multiple choice",
    "clip_colour": "multiple choice",
    "sum": "numerical",
    "clip_cuts": "numerical",
    "shade": "regression",
    "caption": "free-form",
    "sign": "OCR",
}
CUTS = (0, 1, 2, 3)
CHOICES: dict[str, tuple[str, ...]] = {
    "colour": COLOURS,
    "shape": SHAPES,
    "motion": tuple(MOTIONS),
    "image_colour": COLOURS,
    "clip_colour": COLOURS,
    "shade": tuple(str(shade) for shade in SHADES),
    "caption": tuple(f"{colour} shape" for colour in COLOURS),
    "sign": SIGNS,
    "sum": tuple(str(total) for total in range(2, 7)),
    "clip_cuts": tuple(str(cuts) for cuts in CUTS),
}
"""Every right answer that a kind of question can have, in the order in which its options are listed."""
SUFFIXES = {
    "multiple choice": "Answer with a letter.",
    "numerical": "Answer with a number.",
    "regression": "Answer with a number.",
    "OCR": "Answer with the words.",
    "free-form": "Answer with a few words.",
}
VIDEO_KINDS = ("colour", "shade", "caption")
"""What the demo asks about its clips. Shape and motion can be asked too, but take longer to learn."""
USER_KINDS = ("clip_colour", "clip_cuts")
GRADED_KINDS = ("shade", "caption", "sign")
"""Kinds whose score has values between 0 and 1; a wrong answer to them may earn something."""


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """What one drawn clip shows."""

    colour: str
    shape: str
    motion: str
    shade: int
    """Brightness of the background, percent."""
    lane: float
    """Where a single shape stands across its way, 0..1."""
    start: float
    """How far the way is shifted, 0..1."""
    tint: tuple[int, int, int]
    """Added to the background's red, green and blue, -6..6 each: no two clips are alike."""

    def answer(self, kind: str) -> str:
        """The right answer in words (not yet as a letter)."""
        if kind == "caption":
            return f"{self.colour} shape"
        return str(getattr(self, kind.removeprefix("image_")))


def draw_spec(rng: random.Random) -> ClipSpec:
    """A clip with every property drawn uniformly."""
    return ClipSpec(
        colour=rng.choice(COLOURS),
        shape=rng.choice(SHAPES),
        motion=rng.choice(tuple(MOTIONS)),
        shade=rng.choice(SHADES),
        lane=rng.choice(PLACES),
        start=rng.choice(PLACES),
        tint=(rng.randint(-6, 6), rng.randint(-6, 6), rng.randint(-6, 6)),
    )


def render_frame(spec: ClipSpec, progress: float) -> Image.Image:
    """The picture at `progress` (0..1) of the clip, RGB, FRAME_SIZE square."""
    red, green, blue = (round(2.55 * spec.shade) + part for part in spec.tint)
    image = Image.new("RGB", (FRAME_SIZE, FRAME_SIZE), (red, green, blue))
    draw = ImageDraw.Draw(image)
    step_x, step_y = MOTIONS[spec.motion]
    room = FRAME_SIZE - SHAPE_WIDTH
    way = room * 0.85
    along = (room - way) * spec.start + way * (progress if step_x + step_y > 0 else 1 - progress)
    lane = spec.lane * room
    left, top = (along, lane) if step_x else (lane, along)
    _draw_shape(draw, spec.shape, left, top, SHAPE_WIDTH, RGB[spec.colour])
    return image


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, left: float, top: float, width: int, rgb: tuple) -> None:
    box = (round(left), round(top), round(left) + width - 1, round(top) + width - 1)
    third = width // 3
    if shape == "square":
        draw.rectangle(box, fill=rgb)
    elif shape == "ring":
        draw.ellipse(box, outline=rgb, width=max(2, width // 4))
    else:
        draw.rectangle((box[0] + third, box[1], box[2] - third, box[3]), fill=rgb)
        draw.rectangle((box[0], box[1] + third, box[2], box[3] - third), fill=rgb)


def render_sign(words: str, rng: random.Random) -> Image.Image:
    """An image with the words of a sign on two lines, on a random shade."""
    image = Image.new("RGB", (FRAME_SIZE, FRAME_SIZE), (rng.randrange(60),) * 3)
    text = words.replace(" ", "\n")
    font = ImageFont.load_default(size=22)
    ImageDraw.Draw(image).multiline_text((3, 0), text, font=font, fill=(240, 240, 240))
    return image


def write_mp4(path: Path, frames: Sequence[Image.Image], fps: int = CLIP_FPS) -> None:
    """Encode frames as H.264 in an mp4 file; the same frames give the same bytes."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        # One thread and no encoder banner in the stream: the bytes depend on the frames alone.
        stream.options = {"crf": "12", "preset": "veryfast", "threads": "1", "x264-params": "bframes=0"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())


def write_clip(path: Path, spec: ClipSpec) -> None:
    """Draw `spec` and write it as an mp4 of CLIP_FRAMES frames."""
    write_mp4(path, [render_frame(spec, i / (CLIP_FRAMES - 1)) for i in range(CLIP_FRAMES)])


def ask(kind: str, answer: str, rng: random.Random, media: str, **numbers: int) -> tuple[str, str]:
    """The text of a question and its ground truth.

    Args:
        kind: a key of `QUESTIONS`.
        answer: the right answer in words, one of `CHOICES[kind]`.
        rng: chooses the wording.
        media: "<video>", "<image>" or "" before the question.
        **numbers: values for the wording of "sum".

    Returns:
        The user turn (media placeholder, question, options for multiple choice, kind of answer) and the ground truth,
        which is a letter for multiple choice.
    """
    problem_type = PROBLEM_TYPES[kind]
    text = media + rng.choice(QUESTIONS[kind]).format(**numbers)
    truth = answer
    if problem_type == "multiple choice":
        options = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, CHOICES[kind], strict=False)]
        text += "\n" + "\n".join(options)
        truth = LETTERS[CHOICES[kind].index(answer)]
    return f"{text}\n{SUFFIXES[problem_type]}", truth


def answers_of(kind: str) -> tuple[str, ...]:
    """Every ground truth that a question of this kind can have."""
    if PROBLEM_TYPES[kind] == "multiple choice":
        return tuple(LETTERS[: len(CHOICES[kind])])
    return CHOICES[kind]


def make_record(
    *,
    index: int,
    kind: str,
    text: str,
    truth: str,
    video: Path | None = None,
    image: Path | None = None,
    source: str = DATA_SOURCE,
    split: str,
) -> dict[str, Any]:
    """One row in verl's schema (`data_source`, `prompt`, media, `reward_model`, `extra_info`)."""
    pixels = {"min_pixels": FRAME_SIZE**2, "max_pixels": FRAME_SIZE**2}
    return {
        "data_source": source,
        "prompt": [{"role": "user", "content": text}],
        # min_pixels: qwen-vl-utils would otherwise enlarge a clip to 128 vision tokens a frame.
        "videos": [{"video": str(video), "nframes": SAMPLED_FRAMES, **pixels}] if video else [],
        "images": [{"image": str(image), **pixels}] if image else [],
        "reward_model": {"style": "rule", "ground_truth": truth},
        "extra_info": {"index": index, "problem_type": PROBLEM_TYPES[kind], "kind": kind, "split": split},
    }
