"""Video reader by PyAV for qwen-vl-utils 0.0.14, which brings FFmpeg along.

Of the readers that qwen-vl-utils has, torchcodec needs a system FFmpeg, decord has no wheel for current Pythons, and
the one they fall back to on any error, torchvision's ``read_video``, no longer exists in torchvision 0.26: whatever
goes wrong, the user sees an AttributeError about it. This reader chooses the same frames as decord's and torchcodec's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

BACKEND = "pyav"
"""Name of the reader in qwen-vl-utils."""

_register_lock = threading.Lock()


class VideoError(ValueError):
    """A video that cannot be read, or not in the way its record asks for; the message names the file."""


def _count_frames(container: Any, stream: Any) -> int:
    """Number of frames that decoding gives, by the packets: containers often declare none, or a wrong one."""
    return sum(1 for packet in container.demux(stream) if packet.size and not packet.is_discard)


def _to_array(frame: Any, width: int, height: int) -> np.ndarray:
    """RGB pixels of a frame as it is shown, (H, W, 3), uint8; where a stream changes its size, the clip does not."""
    pixels = frame.to_ndarray(format="rgb24", width=width, height=height)
    return np.rot90(pixels, round(frame.rotation / 90)) if frame.rotation else pixels


def decode_frames(path: str, indices: Iterable[int]) -> torch.Tensor:
    """The frames at these places of a video, counted in display order from 0.

    Args:
        path: local file or URL that FFmpeg opens.
        indices: frame numbers, ascending, repeats allowed.

    Returns:
        (T, C, H, W), uint8, RGB, rotated as the file asks for.

    Raises:
        VideoError: no video in the file, a broken one, or fewer frames than asked for.
    """
    import av

    wanted = list(indices)
    needed = set(wanted)
    last = max(needed)
    frames: dict[int, np.ndarray] = {}
    number = -1
    try:
        with av.open(path) as container:
            stream = _video_stream(container, path)
            stream.thread_type = "AUTO"
            width, height = stream.codec_context.width, stream.codec_context.height
            for number, frame in enumerate(container.decode(stream)):
                if number in needed:
                    frames[number] = _to_array(frame, width, height)
                if number == last:
                    break
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path}: cannot decode the video after {number + 1} frames: {error}") from error
    if len(frames) < len(needed):
        raise VideoError(f"{path}: the video ends after {number + 1} frames; frame {last} was asked for")
    return torch.from_numpy(np.stack([frames[index] for index in wanted])).permute(0, 3, 1, 2).contiguous()


def _video_stream(container: Any, path: str) -> Any:
    if not container.streams.video:
        raise VideoError(f"{path}: no video stream in the file")
    return container.streams.video[0]


def probe(path: str) -> tuple[int, float]:
    """Number of frames and frame rate (frames per second) of a video, without decoding it.

    Raises:
        VideoError: no video in the file, a broken one, one without frames or without a frame rate.
    """
    import av

    try:
        with av.open(path) as container:
            stream = _video_stream(container, path)
            rate = stream.average_rate or stream.guessed_rate
            total_frames = _count_frames(container, stream)
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path}: cannot open the video: {error}") from error
    if not total_frames:
        raise VideoError(f"{path}: no frames in the video stream")
    if not rate:
        raise VideoError(f"{path}: the video states no frame rate")
    return total_frames, float(rate)


def read_video(ele: Mapping[str, Any]) -> tuple[torch.Tensor, dict[str, Any], float]:
    """Reads the frames that a video dict asks for; a reader of qwen-vl-utils (``VIDEO_READER_BACKENDS``).

    Args:
        ele: ``video`` (path, ``file://`` or URL); ``nframes``, or ``fps`` with ``min_frames`` and ``max_frames``;
            range in seconds from ``video_start`` to ``video_end``.

    Returns:
        Frames (T, C, H, W), uint8; metadata (``fps`` of the file, ``frames_indices``, ``total_num_frames`` of the
        range, ``video_backend``); frames per second after sampling.

    Raises:
        VideoError: a file that cannot be read or a sampling that it does not allow; the message names the file.
    """
    from qwen_vl_utils.vision_process import calculate_video_frame_range, smart_nframes

    path = str(ele["video"]).removeprefix("file://")
    total_frames, fps = probe(path)
    try:
        start, end, total_frames = calculate_video_frame_range(ele, total_frames, fps)
        nframes = smart_nframes(ele, total_frames=total_frames, video_fps=fps)
    except (AssertionError, ValueError, TypeError, ArithmeticError) as error:
        raise VideoError(f"{path}: cannot sample {total_frames} frames at {fps:g} fps: {error}") from error
    indices = torch.linspace(start, end, nframes).round().long().tolist()
    metadata = {
        "fps": fps,
        "frames_indices": indices,
        "total_num_frames": total_frames,
        "video_backend": BACKEND,
    }
    return decode_frames(path, indices), metadata, nframes / total_frames * fps


def register_pyav_reader() -> None:
    """Makes this reader the one of qwen-vl-utils in this process; again and again does no harm.

    A reader chosen by ``FORCE_QWENVL_VIDEO_READER`` stays. Where torchvision has no ``read_video``, this reader also
    takes its place as the one tried after an error, so that the error which is seen is the video's own.
    """
    from qwen_vl_utils import vision_process

    with _register_lock:
        vision_process.VIDEO_READER_BACKENDS[BACKEND] = read_video
        if not hasattr(vision_process.io, "read_video"):
            vision_process.VIDEO_READER_BACKENDS["torchvision"] = read_video
        if vision_process.FORCE_QWENVL_VIDEO_READER is None:
            vision_process.FORCE_QWENVL_VIDEO_READER = BACKEND
            vision_process.get_video_reader_backend.cache_clear()
