"""Frames of a video in another order, the same for all responses of a prompt. Pure.

Source: T-GRPO, arXiv 2503.21776 §3; Video-R1 ``grpo_trainer.py`` permutes the sampled frames once a sample, before the
vision tower merges pairs of them. Where the published permutation may happen to be the identity, ours never is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

SHUFFLED_FIELD = "care_shuffled"
"""Extra field of an agent loop: text of the session's response on shuffled frames, None where it gave none."""
SHUFFLED_TOKENS_FIELD = "care_shuffled_tokens"
"""Extra field: tokens of that response, 0 where there is none."""
SHUFFLED_SECONDS_FIELD = "care_shuffled_seconds"
"""Extra field: seconds from its request to its end; it runs beside the response on ordered frames."""
SHUFFLED_DELAY_FIELD = "care_shuffled_delay"
"""Extra field: seconds that the session went on waiting for it after the response on ordered frames had ended."""
SHUFFLED_RESPONSES_COLUMN = "care_shuffled_responses"
"""Column of a training row: how many of the prompt's sessions, counted from 0, answer on shuffled frames too. Rows of a
validation do not have it."""


def permute_frames(num_frames: int, identity: str) -> list[int]:
    """A permutation of frames that depends on nothing but its arguments, drawn uniformly from all but the identity.

    Args:
        num_frames: frames of the video, at least 2.
        identity: what the permutation belongs to; another identity gives another draw.

    Returns:
        ``order``: frame ``order[i]`` of the video is shown at place ``i``.

    Raises:
        ValueError: fewer than two frames, which have no other order.
    """
    if num_frames < 2:
        raise ValueError(f"num_frames: expected at least 2; got {num_frames}")
    ordered = list(range(num_frames))
    attempt = 0
    while True:
        # Sorted by hash: the same on every machine and in every version of Python and torch.
        keys = [hashlib.blake2b(f"{identity}/{attempt}/{i}".encode(), digest_size=16).digest() for i in ordered]
        order = sorted(ordered, key=keys.__getitem__)
        if order != ordered:
            return order
        attempt += 1


def shuffle_videos(videos: Sequence[Any] | None, *, prompt_key: str, step: int, seed: int = 0) -> list[Any] | None:
    """A prompt's videos with their frames in another order, each in its own; metadata and places stay.

    Args:
        videos: as qwen-vl-utils gives them: frames (T, C, H, W), or pairs of frames and metadata.
        prompt_key: name of the record.
        step: training step the prompt was drawn for; the next visit of the record has another order.
        seed: the run's seed.

    Returns:
        New videos of the same shapes; None where no video has two frames.
    """
    shuffled = []
    changed = False
    for i, video in enumerate(videos or ()):
        frames, *rest = video if isinstance(video, tuple) else (video,)
        if len(frames) >= 2:
            frames = frames[permute_frames(len(frames), f"{seed}/{prompt_key}/{step}/{i}")]
            changed = True
        shuffled.append((frames, *rest) if isinstance(video, tuple) else frames)
    return shuffled if changed else None
