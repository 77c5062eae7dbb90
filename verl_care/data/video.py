"""Video reader by PyAV for qwen-vl-utils 0.0.14, which brings FFmpeg along.

Of the readers that qwen-vl-utils has, torchcodec needs a system FFmpeg, decord has no wheel for current Pythons, and
the one they fall back to on any error, torchvision's ``read_video``, no longer exists in torchvision 0.26: whatever
goes wrong, the user sees an AttributeError about it. This reader chooses the same frames as decord's and torchcodec's.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

BACKEND = "pyav"
"""Name of the reader in qwen-vl-utils."""

_JUMP_FRAMES = 16
"""A jump to a key frame costs about as much as decoding some frames; over fewer than these none is made."""

_register_lock = threading.Lock()


class VideoError(ValueError):
    """A video that cannot be read, or not in the way its record asks for; the message names the file."""


@dataclass(frozen=True)
class Timeline:
    """Frames of a video in display order, by its packets: containers often declare no number, or a wrong one."""

    total_frames: int
    fps: float
    times: tuple[int, ...]
    """Time stamp of each frame, rising; empty where packets carry none, or the same twice."""
    keys: tuple[int, ...]
    """Numbers of the frames at which decoding can begin, rising; empty with ``times``."""


def _scan(container: Any, stream: Any, fps: float) -> Timeline:
    packets = [
        (packet.pts, packet.is_keyframe) for packet in container.demux(stream) if packet.size and not packet.is_discard
    ]
    times = [time for time, _ in packets]
    if None in times or len(set(times)) < len(times):
        return Timeline(len(packets), fps, (), ())
    ordered = sorted(packets)
    keys = tuple(number for number, (_, is_key) in enumerate(ordered) if is_key)
    return Timeline(len(packets), fps, tuple(time for time, _ in ordered), keys)


def _to_array(frame: Any, width: int, height: int) -> np.ndarray:
    """RGB pixels of a frame as it is shown, (H, W, 3), uint8; where a stream changes its size, the clip does not."""
    pixels = frame.to_ndarray(format="rgb24", width=width, height=height)
    return np.rot90(pixels, round(frame.rotation / 90)) if frame.rotation else pixels


def decode_frames(path: str, indices: Iterable[int], timeline: Timeline | None = None) -> torch.Tensor:
    """The frames at these places of a video, counted in display order from 0.

    Args:
        path: local file or URL that FFmpeg opens.
        indices: frame numbers, ascending, repeats allowed.
        timeline: the video's, to leave out what lies between frames far apart; None decodes from the start.

    Returns:
        (T, C, H, W), uint8, RGB, rotated as the file asks for.

    Raises:
        VideoError: no video in the file, a broken one, or fewer frames than asked for.
    """
    import av

    wanted = list(indices)
    frames: dict[int, np.ndarray] | None = None
    try:
        if timeline is not None and _is_sparse(wanted, timeline):
            with av.open(path) as container:
                frames = _decode_sparse(container, _video_stream(container, path), wanted, timeline)
    except (av.FFmpegError, OSError):
        # Not every container can be searched; from the start, what is wrong shows where it is.
        frames = None
    if frames is None:
        frames = _decode_from_start(path, set(wanted))
    return torch.from_numpy(np.stack([frames[index] for index in wanted])).permute(0, 3, 1, 2).contiguous()


def _decode_from_start(path: str, needed: set[int]) -> dict[int, np.ndarray]:
    import av

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
    return frames


def _key_before(timeline: Timeline, number: int) -> int:
    """The last frame at or before this one at which decoding can begin; -1 for none."""
    place = bisect_right(timeline.keys, number)
    return timeline.keys[place - 1] if place else -1


def _is_sparse(wanted: Sequence[int], timeline: Timeline) -> bool:
    """Whether some frame can be had by a jump over many others."""
    if not timeline.times or wanted[-1] >= len(timeline.times):
        return False
    before = -1
    for number in wanted:
        if _key_before(timeline, number) > before + _JUMP_FRAMES:
            return True
        before = number
    return False


def _decode_sparse(
    container: Any, stream: Any, wanted: Sequence[int], timeline: Timeline
) -> dict[int, np.ndarray] | None:
    """Decodes from the key frame before each wanted one; None where a jump did not land where the packets say."""
    stream.thread_type = "AUTO"
    width, height = stream.codec_context.width, stream.codec_context.height
    place = {time: number for number, time in enumerate(timeline.times)}
    needed = set(wanted)
    frames: dict[int, np.ndarray] = {}
    decoded = container.decode(stream)
    position = -1
    for target in sorted(needed):
        key = _key_before(timeline, target)
        if key > position + _JUMP_FRAMES:
            container.seek(timeline.times[key], stream=stream)
            decoded = container.decode(stream)
        while target not in frames:
            frame = next(decoded, None)
            position = -1 if frame is None else place.get(frame.pts, -1)
            if frame is None or position < 0 or position > target:
                return None
            if position in needed:
                frames[position] = _to_array(frame, width, height)
    return frames


def _video_stream(container: Any, path: str) -> Any:
    if not container.streams.video:
        raise VideoError(f"{path}: no video stream in the file")
    return container.streams.video[0]


def scan(path: str) -> Timeline:
    """What a video's packets say about its frames, without decoding it.

    Raises:
        VideoError: no video in the file, a broken one, one without frames or without a frame rate.
    """
    import av

    if "://" not in path[:16] and os.path.exists(path) and not os.path.isfile(path):
        # FFmpeg would wait for the writer of a pipe, and read a device without end.
        raise VideoError(f"{path}: cannot open the video: is no regular file")
    try:
        with av.open(path) as container:
            stream = _video_stream(container, path)
            rate = stream.average_rate or stream.guessed_rate
            timeline = _scan(container, stream, float(rate or 0))
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path}: cannot open the video: {error}") from error
    if not timeline.total_frames:
        raise VideoError(f"{path}: no frames in the video stream")
    if not rate:
        raise VideoError(f"{path}: the video states no frame rate")
    return timeline


def probe(path: str) -> tuple[int, float]:
    """Number of frames and frame rate (frames per second) of a video, without decoding it.

    Raises:
        VideoError: no video in the file, a broken one, one without frames or without a frame rate.
    """
    timeline = scan(path)
    return timeline.total_frames, timeline.fps


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
    timeline = scan(path)
    total_frames, fps = timeline.total_frames, timeline.fps
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
    return decode_frames(path, indices, timeline), metadata, nframes / total_frames * fps


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
