"""From a record to the messages that an engine is asked: media in their places, frames and pixels, options in another
order, and the question without its clip. Pure.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from verl_care.data.records import strip_none
from verl_care.rewards.multiple_choice import split_option
from verl_care.rewards.scorer import GROUNDED_QA

Messages = list[dict[str, Any]]
"""Turns whose content is a list of ``{"type": "text" | "video" | "image", …}``."""

MIN_FRAMES = 4
"""Fewest frames of a clip by default (qwen-vl-utils, ``FPS_MIN_FRAMES``)."""

MIN_PART_FRAMES = 2
"""Fewest frames of a part of a video that is there in several."""

_PLACEHOLDER = re.compile("(<video>|<image>)")
_RATE_KEYS = ("fps", "min_frames", "max_frames")
# Options that speak of other options, or of where these stand, mean something else in another order.
_REFERS = re.compile(
    r"\b(?:above|below|all of (?:them|these)|none of (?:them|these)|both|neither|previous|[A-H] (?:and|or|&) [A-H])\b",
    re.IGNORECASE,
)


def build_messages(row: Mapping[str, Any]) -> Messages:
    """A record's turns with each placeholder replaced by its media dict, as verl's ``RLHFDataset`` does.

    Args:
        row: record as ``data.records`` describes it, checked.
    """
    media = {f"<{kind}>": iter(row.get(f"{kind}s") or ()) for kind in ("video", "image")}
    messages: Messages = []
    for message in row["prompt"]:
        parts: list[dict[str, Any]] = []
        for piece in _PLACEHOLDER.split(message["content"]):
            if piece in media:
                item = next(media[piece])
                parts.append({"type": piece[1:-1], **(strip_none(item) if isinstance(item, Mapping) else {})})
                if not isinstance(item, Mapping):
                    parts[-1][piece[1:-1]] = item
            elif piece:
                parts.append({"type": "text", "text": piece})
        messages.append({"role": message["role"], "content": parts})
    return messages


def without_media(messages: Messages) -> Messages:
    """The same question asked blind."""
    return [{**turn, "content": [part for part in turn["content"] if part["type"] == "text"]} for turn in messages]


def part_range(part: Mapping[str, Any]) -> tuple[str, Any, Any]:
    """File, start and end of a video dict."""
    return str(part["video"]), part.get("video_start"), part.get("video_end")


def frame_shares(messages: Messages) -> dict[tuple[str, Any, Any], float]:
    """Of a video that is there in several parts, each part's share of their seconds, by ``part_range``."""
    lengths: dict[str, dict[tuple[str, Any, Any], float]] = {}
    for part in video_parts(messages):
        file, start, end = part_range(part)
        if start is not None and end is not None:
            lengths.setdefault(file, {})[file, start, end] = end - start
    return {
        name: length / sum(parts.values())
        for parts in lengths.values()
        if len(parts) > 1
        for name, length in parts.items()
    }


def share_frames(frames: int, share: float) -> int:
    """A part's share of a number of frames, rounded down; at least two, which are one patch of the model."""
    return frames if share == 1.0 else max(MIN_PART_FRAMES, int(frames * share))


def set_budget(
    messages: Messages,
    *,
    max_frames: int | None = None,
    fps: float | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> Messages:
    """The same messages under another budget of frames and pixels; None leaves what the record says.

    Args:
        messages: see ``build_messages``.
        max_frames: frames of a video at most, which parts of one share. A record that names its frames (``nframes``)
            gets this number instead.
        fps: frames a second of the video before that cap.
        min_pixels: of a frame or image.
        max_pixels: of a frame or image.
    """
    pixels = strip_none({"min_pixels": min_pixels, "max_pixels": max_pixels})

    shares = frame_shares(messages)

    def mend(part: dict[str, Any]) -> dict[str, Any]:
        if part["type"] == "text":
            return part
        part = {**part, **pixels}
        if part["type"] != "video":
            return part
        most = None if max_frames is None else share_frames(max_frames, shares.get(part_range(part), 1.0))
        if "nframes" in part:
            return part if most is None else {**part, "nframes": most}
        if fps is not None:
            part["fps"] = fps
        if most is not None:
            part |= {"max_frames": most, "min_frames": min(part.get("min_frames", MIN_FRAMES), most)}
        return part

    return [{**turn, "content": [mend(part) for part in turn["content"]]} for turn in messages]


def at_frames(messages: Messages, num_frames: int) -> Messages:
    """The same messages with exactly ``num_frames`` frames of every video, which parts of one share."""
    shares = frame_shares(messages)

    def mend(part: dict[str, Any]) -> dict[str, Any]:
        if part["type"] != "video":
            return part
        frames = share_frames(num_frames, shares.get(part_range(part), 1.0))
        return {**{key: value for key, value in part.items() if key not in _RATE_KEYS}, "nframes": frames}

    return [{**turn, "content": [mend(part) for part in turn["content"]]} for turn in messages]


def video_parts(messages: Messages) -> list[dict[str, Any]]:
    """The video dicts of a prompt, in order."""
    return [part for turn in messages for part in turn["content"] if part["type"] == "video"]


def options_of(row: Mapping[str, Any]) -> list[str]:
    """The record's options: ``extra_info.options``, or the prompt's lines ``A. …``, ``B. …``; empty for neither."""
    listed = row["extra_info"].get("options")
    if listed is not None and len(listed):
        return list(listed)
    lines = row["prompt"][-1]["content"].splitlines()
    found = [(pair[0], line.strip()) for line in lines if (pair := split_option(line.strip()))]
    letters = "".join(letter for letter, _ in found)
    return [line for _, line in found] if len(found) > 1 and "ABCDEFGHIJ".startswith(letters) else []


def reorder_options(row: Mapping[str, Any], seed: int) -> dict[str, Any] | None:
    """The record with its options in an order drawn by ``seed`` and its own name; letters stay in place, texts move.

    Args:
        row: record of ``multiple choice`` or ``grounded QA``.
        seed: the same order for every run with it.

    Returns:
        A new record; None where an order would change the question: no options, options that are not lines of the
        prompt of their own, or one that speaks of others ("all of the above").
    """
    options = options_of(row)
    pairs = [pair for pair in map(split_option, options) if pair]
    content = row["prompt"][-1]["content"]
    lines = content.split("\n")
    stripped = [line.strip() for line in lines]
    if len(pairs) < 2 or any(_REFERS.search(text) for _, text in pairs):
        return None
    if any(stripped.count(option.strip()) != 1 for option in options):
        return None
    name = f"{seed}/{row['data_source']}/{row['extra_info']['index']}"
    order = random.Random(name).sample(range(len(pairs)), len(pairs))
    moved: dict[str, str] = {}
    new_options = []
    for (letter, text), option, source in zip(pairs, options, order, strict=True):
        place = stripped.index(option.strip())
        new_option = option.rstrip()[: len(option.rstrip()) - len(text)] + pairs[source][1]
        lines[place] = lines[place].replace(option.strip(), new_option.strip())
        new_options.append(new_option)
        moved[pairs[source][0]] = letter
    truth = _moved_truth(row["reward_model"]["ground_truth"], moved, row["extra_info"]["problem_type"])
    if truth is None:
        return None
    prompt = [*row["prompt"][:-1], {**row["prompt"][-1], "content": "\n".join(lines)}]
    extra_info = {**row["extra_info"], "options": new_options}
    return {
        **row,
        "prompt": prompt,
        "extra_info": extra_info,
        "reward_model": {**row["reward_model"], "ground_truth": truth},
    }


def _moved_truth(truth: str, moved: Mapping[str, str], problem_type: str) -> str | None:
    if problem_type != GROUNDED_QA:
        return moved.get(truth.strip())
    try:
        answer = json.loads(truth)
    except ValueError:
        return None
    letter = moved.get(answer.get("answer", "")) if isinstance(answer, dict) else None
    return None if letter is None else json.dumps({**answer, "answer": letter})


def digest_source(messages: Sequence[Mapping[str, Any]]) -> str:
    """A text that two prompts share if and only if an engine is asked the same."""
    return json.dumps(messages, sort_keys=True, ensure_ascii=True, default=str)
