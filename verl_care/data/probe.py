"""Looks at every clip before training: does it open, has it frames, how long and how large is it. Imports no torch.

What was found is kept in a file by the identity of each clip (path, size, time of change), so that a run that was
stopped goes on where it was, and a second one looks at new clips alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

MISSING = "missing"
UNREADABLE = "unreadable"
NO_FRAMES = "no frames"
TOO_SHORT = "too short"
TOO_LONG = "too long"

CAUSES = (MISSING, UNREADABLE, NO_FRAMES, TOO_SHORT, TOO_LONG)
"""Why a clip cannot be trained on."""

MIN_FRAMES = 2
"""Frames that qwen-vl-utils needs of a clip (``FRAME_FACTOR``)."""

_BLOCK = 1 << 16
_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What was found about one file."""

    path: str
    frames: int = 0
    """0 for a picture."""
    duration: float | None = None
    """Seconds; None for a picture."""
    fps: float | None = None
    width: int = 0
    height: int = 0
    digest: str = ""
    """Hash of size and three blocks of the file: equal for equal files; empty for a missing one."""
    cause: str | None = None
    """One of ``CAUSES`` that shows without limits; None for a sound file."""
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a clip may be, over what every clip must be."""

    min_seconds: float = 0.0
    max_seconds: float = math.inf

    def judge(self, clip: Clip, start: float | None = None, end: float | None = None) -> tuple[str, str] | None:
        """Cause and detail of why a clip cannot be trained on, or None.

        Args:
            clip: what was found.
            start: seconds into the file where the part that is asked about begins.
            end: seconds where it ends.
        """
        if clip.cause:
            return clip.cause, clip.detail
        if clip.duration is None:
            return None
        if clip.frames < MIN_FRAMES:
            return TOO_SHORT, f"{clip.frames} frame; {MIN_FRAMES} are needed"
        if start is not None and start >= clip.duration:
            return TOO_SHORT, f"{clip.duration:.1f} s; the part from {start:g} s on is asked about"
        length = min(clip.duration, math.inf if end is None else end) - (start or 0.0)
        if length < self.min_seconds:
            return TOO_SHORT, f"{length:.1f} s; at least {self.min_seconds:g} are wanted"
        if length > self.max_seconds:
            return TOO_LONG, f"{length:.1f} s; at most {self.max_seconds:g} are wanted"
        return None


def hash_file(path: str, size: int) -> str:
    """Hash of a file's size and of 64 KiB at its beginning, middle and end; of all of it where it is smaller."""
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with open(path, "rb") as file:
        for place in (0, size // 2, size - _BLOCK) if size > 3 * _BLOCK else (0,):
            file.seek(place)
            digest.update(file.read(_BLOCK if size > 3 * _BLOCK else size))
    return digest.hexdigest()


def probe_file(path: str) -> Clip:
    """Looks at one video or picture. What is wrong with it is part of the result; nothing is raised."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            # Reading would wait for the writer of a pipe, and never end on a device.
            return Clip(path=path, cause=UNREADABLE, detail="is no regular file")
        digest = hash_file(path, status.st_size)
    except OSError as error:
        cause = MISSING if isinstance(error, FileNotFoundError | NotADirectoryError) else UNREADABLE
        return Clip(path=path, cause=cause, detail=error.strerror or str(error))
    try:
        look = _probe_image if path.lower().endswith(_IMAGES) else _probe_video
        return Clip(path=path, digest=digest, **look(path))
    except Exception as error:
        # Decoders raise what they like on a broken file; whatever it is belongs to the file.
        return Clip(path=path, digest=digest, cause=UNREADABLE, detail=" ".join(str(error).split()) or repr(error))


def _probe_video(path: str) -> dict[str, Any]:
    import av

    with av.open(path) as container:
        if not container.streams.video:
            return {"cause": UNREADABLE, "detail": "no video stream in the file"}
        stream = container.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate
        first = next(container.decode(stream), None)
        if first is None:
            return {"cause": NO_FRAMES, "detail": "no frame can be decoded"}
        size = {"width": first.width, "height": first.height}
    with av.open(path) as container:
        # Counted as the reader of training counts: containers often declare none, or a wrong number.
        packets = container.demux(container.streams.video[0])
        frames = sum(1 for packet in packets if packet.size and not packet.is_discard)
    if not rate:
        return {**size, "frames": frames, "cause": UNREADABLE, "detail": "the video states no frame rate"}
    return {**size, "frames": frames, "fps": float(rate), "duration": frames / float(rate)}


def _probe_image(path: str) -> dict[str, Any]:
    from PIL import Image

    with Image.open(path) as image:
        image.verify()
        return {"width": image.width, "height": image.height}


class Cache:
    """Results by file, in a file of JSON lines that is written as they come.

    Args:
        path: the file; made with the first result.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[str, tuple[list[int], Clip]] = {}
        self._file: TextIO | None = None
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                    self._found[entry["clip"]["path"]] = (entry["identity"], Clip(**entry["clip"]))
                except (ValueError, KeyError, TypeError):
                    # The line that a killed run was writing; its clip is looked at again.
                    continue

    @staticmethod
    def identify(path: str) -> list[int] | None:
        """Size and time of change of a file; None for a missing one, which is looked for each time."""
        try:
            status = os.stat(path)
        except OSError:
            return None
        return [status.st_size, status.st_mtime_ns]

    def get(self, path: str) -> Clip | None:
        """What was found about a file that has not changed since."""
        identity, clip = self._found.get(path, (None, None))
        return clip if identity is not None and identity == self.identify(path) else None

    def put(self, identity: list[int] | None, clip: Clip) -> None:
        """Keeps a result; a missing file's is not kept."""
        if identity is None:
            return
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
            self._file = self.path.open("a", encoding="utf-8", buffering=1)
            if torn:
                self._file.write("\n")
        self._file.write(json.dumps({"identity": identity, "clip": asdict(clip)}) + "\n")

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def probe_all(
    paths: Iterable[str],
    cache: Cache,
    workers: int | None = None,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Clip]:
    """Looks at many files at once; each result is kept as soon as it is there.

    Args:
        paths: files; repeats count once.
        cache: what earlier runs found.
        workers: threads; None takes one a core. FFmpeg works outside of Python's lock.
        on_done: told how many of how many are done.

    Returns:
        Path -> what was found.
    """
    wanted = list(dict.fromkeys(paths))
    found: dict[str, Clip] = {}
    try:
        for path, clip in _probe_each(wanted, cache, workers or os.cpu_count() or 1):
            found[path] = clip
            on_done(len(found), len(wanted))
    finally:
        cache.close()
    return {path: found[path] for path in wanted}


def _probe_each(wanted: list[str], cache: Cache, workers: int) -> Iterator[tuple[str, Clip]]:
    fresh: list[str] = []
    for path in wanted:
        clip = cache.get(path)
        if clip is None:
            fresh.append(path)
        else:
            yield path, clip
    pool = ThreadPoolExecutor(workers)
    running: dict[Future[Clip], tuple[str, list[int] | None]] = {}
    queue = iter(fresh)
    try:
        while True:
            # A few ahead of the workers: a hundred thousand futures at once would outlive an interrupt.
            for path in queue:
                running[pool.submit(probe_file, path)] = (path, cache.identify(path))
                if len(running) >= 4 * workers:
                    break
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                path, identity = running.pop(future)
                clip = future.result()
                cache.put(identity, clip)
                yield path, clip
    finally:
        pool.shutdown(cancel_futures=True)
