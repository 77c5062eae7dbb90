from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import settings

# Some tests pay for imports or files in their first example; how long one takes is not what they are about.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")


def write_clip(path: Path, frames: int = 30, fps: Fraction | int = 10, size: int = 64, **options: str) -> Path:
    """An H.264 clip whose frame n is grey of level 8 * n, its upper half red."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "1", **options})
        stream.width, stream.height, stream.pix_fmt = size, size // 2, "yuv420p"
        for number in range(frames):
            image = np.full((size // 2, size, 3), 8 * number % 256, dtype=np.uint8)
            image[: size // 4] = (255, 0, 0)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """30 frames at 10 fps, 64 x 32, with B-frames."""
    return write_clip(tmp_path / "clip.mp4", bf="2", g="12")


@pytest.fixture
def make_clip(tmp_path: Path):
    return lambda name="made.mp4", **options: write_clip(tmp_path / name, **options)
