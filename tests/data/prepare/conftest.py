"""A folder with published files and clips in it, and what a preparer makes of them."""

import csv
import json
import shutil
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verl_care.data.prepare.run import Request, prepare
from verl_care.data.prepare.table import PREPARERS


def write_clip(path: Path, frames: int = 40, level: int = 0) -> Path:
    """Clip of 32 x 32 pixels at 10 frames a second; clips of different levels differ as files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(frames):
            image = np.full((32, 32, 3), (level + 3 * number) % 256, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def four_seconds(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")


class World:
    """Published files in ``source``, clips in ``videos``, prepared ones in ``out``."""

    def __init__(self, folder: Path, clip: Path) -> None:
        self.source, self.videos, self.out = folder / "source", folder / "videos", folder / "out"
        self.videos.mkdir()
        self._clip = clip
        self.told: list[str] = []

    def _path(self, name: str) -> Path:
        path = self.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def json(self, name: str, content) -> Path:
        path = self._path(name)
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    def jsonl(self, name: str, rows) -> Path:
        path = self._path(name)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    def csv(self, name: str, rows) -> Path:
        path = self._path(name)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return path

    def parquet(self, name: str, rows) -> Path:
        path = self._path(name)
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path

    def text(self, name: str, text: str) -> Path:
        path = self._path(name)
        path.write_text(text, encoding="utf-8")
        return path

    def clip(self, *names: str) -> None:
        for name in names:
            path = self.videos / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self._clip, path)

    def own_clip(self, name: str, frames: int = 40, level: int = 0) -> Path:
        return write_clip(self.videos / name, frames, level)

    def prepare(self, name: str, **request):
        """Manifest of a data set prepared from ``source`` into ``out / name``."""
        given = {"source": self.source, "videos": self.videos, "out": self.out / name, **request}
        return prepare(PREPARERS[name], Request(**given), tell=self.told.append)

    def rows(self, name: str, part: str = "test"):
        return pq.read_table(self.out / name / f"{part}.parquet").to_pylist()


@pytest.fixture
def world(tmp_path, four_seconds) -> World:
    return World(tmp_path, four_seconds)


@pytest.fixture
def video_r1_record():
    def make(number: int = 0, **changes):
        return {
            "problem_id": number,
            "problem": f"What appears first in clip {number}?",
            "data_type": "video",
            "problem_type": "multiple choice",
            "options": ["A. cup", "B. pen"],
            "solution": "<answer>A</answer>",
            "path": f"./CLEVRER/train/video_{number}.mp4",
            "data_source": "CLEVRER",
            **changes,
        }

    return make
