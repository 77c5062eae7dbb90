"""Clips for tests and measurements, written on the spot."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np


def write_clip(
    path: Path, *, seconds: float, fps: int = 10, width: int = 128, height: int = 96, seed: int = 0, **options: str
) -> Path:
    """An H.264 clip of a gradient that moves under a fixed texture: every frame differs, and none is flat.

    Args:
        path: where it goes.
        seconds: length.
        fps: frames a second.
        width: in pixels, even.
        height: in pixels, even.
        seed: of the texture.
        options: of x264, such as ``g="250"`` for the distance of key frames.
    """
    import av

    texture = np.random.default_rng(seed).integers(0, 60, (height, width, 3), dtype=np.int16)
    ramp = np.add.outer(np.arange(height), np.arange(width))[:, :, None] * np.array([1, 2, 3])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options={"preset": "ultrafast", **options})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(round(seconds * fps)):
            image = (texture + (ramp + 5 * number) % 190).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path
