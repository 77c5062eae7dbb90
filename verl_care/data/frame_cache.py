"""Decoded and resized frames on disk, so that later epochs and evaluations skip decoding.

One file a video and way of sampling: a JSON line with what the entry is, the frames, and a digest over both. The name
is a digest of the video's bytes and of everything that decides about its frames, so that an entry is never looked up
for another video, another sampling or other versions of what made it. Files are written aside and renamed into place:
readers and other writers see a whole entry or none.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

logger = logging.getLogger(__name__)

_FORMAT = 1
_SUFFIX = ".frames"
_DIGEST_BYTES = 32


@lru_cache(maxsize=1)
def _made_by() -> list[str]:
    """Versions on which the pixels of an entry depend."""
    packages = ("av", "qwen-vl-utils", "torchvision", "torch", "numpy")
    return [f"{package} {version(package)}" for package in packages]


@lru_cache(maxsize=4096)
def _content_digest(path: str, size: int, modified: int, changed: int, inode: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def content_digest(path: str) -> str:
    """Digest of a file's bytes; read again whenever the file system says that the file may have changed.

    Raises:
        OSError: the file cannot be read.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        # Reading would wait for the writer of a pipe, and never end on a device.
        raise OSError(f"{path}: is no regular file")
    return _content_digest(path, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def entry_name(element: Mapping[str, Any], image_patch_size: int, reader: str) -> str:
    """Name of the entry for a video dict.

    Args:
        element: ``video``, a local path, and keys of qwen-vl-utils (``nframes``, ``fps``, ``max_pixels``, …).
        image_patch_size: of the model's vision tower; sizes are multiples of twice as much.
        reader: name of the reader that decodes.
    """
    path = str(element["video"]).removeprefix("file://")
    options = {key: value for key, value in element.items() if key not in ("video", "type")}
    identity = [_FORMAT, content_digest(path), options, image_patch_size, reader, _made_by()]
    text = json.dumps(identity, sort_keys=True, default=repr)
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).hexdigest()


class FrameCache:
    """A folder of entries, held below a size by removing those that were used longest ago.

    Args:
        folder: made if it is not there; may be shared by processes and machines.
        max_gib: size in GiB.
    """

    def __init__(self, folder: str | Path, max_gib: float) -> None:
        if max_gib <= 0:
            raise ValueError(f"data.care_video.cache_gib: expected a number > 0; got {max_gib}")
        self.folder = Path(folder)
        self.max_bytes = int(max_gib * 2**30)
        self._lock = threading.Lock()
        self._written_since_sweep = self.max_bytes

    def get(self, name: str, make: Callable[[], tuple[torch.Tensor, dict[str, Any], float]]) -> tuple:
        """The entry of this name, made and kept if there is none.

        Returns:
            Frames (T, C, H, W), float32; metadata; frames a second after sampling: what ``make`` returns.
        """
        path = self.folder / name[:2] / (name + _SUFFIX)
        try:
            found = _read(path)
        except FileNotFoundError:
            found = None
        except (OSError, ValueError, KeyError) as error:
            logger.warning(f"{path}: dropped and made again: {error}")
            path.unlink(missing_ok=True)
            found = None
        if found is not None:
            # The time of its last use, which decides about removal.
            os.utime(path)
            return found
        made = make()
        self._keep(path, *made)
        return made

    def _keep(self, path: Path, frames: torch.Tensor, metadata: dict[str, Any], sample_fps: float) -> None:
        whole = frames.to(torch.uint8)
        # qwen-vl-utils resizes in uint8 and converts at the end; what is not whole numbers is kept as it is.
        stored = whole if torch.equal(whole.to(frames.dtype), frames) else frames
        header = {
            "shape": list(stored.shape),
            "dtype": str(stored.dtype).removeprefix("torch."),
            "frames": str(frames.dtype).removeprefix("torch."),
            "metadata": metadata,
            "sample_fps": sample_fps,
        }
        head = json.dumps(header).encode() + b"\n"
        pixels = stored.contiguous().numpy()
        if len(head) + pixels.nbytes > self.max_bytes:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        # In the same folder, so that it is renamed and not copied.
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(head)
                file.write(pixels.data)
                file.write(_digest(head, pixels))
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        with self._lock:
            self._written_since_sweep += path.stat().st_size
            # Other processes write too, so that the folder is looked at now and then.
            due = self._written_since_sweep >= self.max_bytes // 20
            if due:
                self._written_since_sweep = 0
        if due:
            self.sweep()

    def sweep(self) -> None:
        """Remove the entries that were used longest ago, until the rest is below the size."""
        entries = []
        for path in self.folder.glob(f"*/*{_SUFFIX}"):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue  # another process was first
            entries.append((stat.st_mtime_ns, stat.st_size, path))
        excess = sum(size for _, size, _ in entries) - self.max_bytes
        for _, size, path in sorted(entries):
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= size


def _digest(head: bytes, pixels: np.ndarray) -> bytes:
    digest = hashlib.blake2b(head, digest_size=_DIGEST_BYTES)
    digest.update(pixels.data)
    return digest.digest()


def _read(path: Path) -> tuple[torch.Tensor, dict[str, Any], float]:
    with open(path, "rb") as file:
        head = file.readline()
        header = json.loads(head)
        pixels = np.empty(header["shape"], dtype=header["dtype"])
        if file.readinto(pixels.data.cast("B")) != pixels.nbytes or file.read() != _digest(head, pixels):
            raise ValueError("the entry is damaged")
    frames = torch.from_numpy(pixels).to(getattr(torch, header["frames"]))
    return frames, header["metadata"], header["sample_fps"]


@lru_cache(maxsize=8)
def open_cache(folder: str, max_gib: float) -> FrameCache:
    """The process's cache over a folder."""
    return FrameCache(folder, max_gib)
