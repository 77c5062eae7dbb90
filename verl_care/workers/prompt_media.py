"""The media of one prompt, decoded and processed once for all its responses.

Stock verl 0.9.1 decodes a clip once a response (``SingleTurnAgentLoop.run``) and runs the processor three times (prompt
tokens, ``_compute_score``, ``_agent_loop_postprocess``), the last two on the event loop. All responses of a
prompt are tasks of one worker, started by its ``_run_prompt``; what they share hangs on that call's context, so that it
goes when the last of them has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

CURRENT: ContextVar[PromptMedia | None] = ContextVar("care_prompt_media", default=None)
"""What the sessions of the running prompt share; None outside `CareAgentLoopWorker`."""


@dataclass(frozen=True)
class Frames:
    """Stands for a prompt's media in the agent loop: where the engine finds them, and no pixels."""

    reference: Any
    """Object reference of what the agent loop would pass on itself."""
    shuffled: Any = None
    """The same with videos in another frame order; None where there is no other order, or nobody asked."""


@dataclass(frozen=True)
class Prepared:
    """A prompt after decoding and processing."""

    data: dict[str, Any]
    """``images``, ``videos`` and ``audios`` of the agent loop's output."""
    token_ids: list[int]
    features: dict[str, Any]
    """What the processor gave besides token ids; without the tensors that are stored once."""
    inputs: Any
    """``multi_modal_inputs`` of every row."""

    def holds(self, data: dict[str, Any]) -> bool:
        """Whether these are the media that were prepared, and no others."""
        return all(data.get(kind) is self.data.get(kind) for kind in ("images", "videos", "audios"))


class PromptMedia:
    """What the sessions of one prompt share.

    Args:
        uid: verl's name of the prompt.
        limit: how many prompts of the worker are decoded and processed at a time.
        stored: the worker's list of prompts whose pixels it has put into TransferQueue.
    """

    def __init__(self, uid: str, limit: asyncio.Semaphore, stored: set[str]) -> None:
        self.uid = uid
        self.stored = stored
        self.positions: Tensor | None = None
        """Positions of the prompt's tokens, (1, C, L) or (1, L), once a row has needed them."""
        self._limit = limit
        self._task: asyncio.Task[Prepared] | None = None

    async def prepare(self, make: Callable[[], Coroutine[Any, Any, Prepared]]) -> Prepared:
        """Run ``make`` once; who comes while it runs waits for it, and sees its error if it fails."""
        if self._task is None:
            self._task = asyncio.create_task(self._limited(make))
        # A session that is cancelled does not take the others' work along.
        return await asyncio.shield(self._task)

    async def _limited(self, make: Callable[[], Coroutine[Any, Any, Prepared]]) -> Prepared:
        async with self._limit:
            return await make()

    @property
    def prepared(self) -> Prepared | None:
        """What is shared, once it is there."""
        task = self._task
        if task is None or not task.done() or task.cancelled() or task.exception():
            return None
        return task.result()


def row_inputs(features: dict[str, Any]) -> dict[str, Any]:
    """``multi_modal_inputs`` as stock verl's ``_compute_multi_modal_inputs`` makes them of a processor's output."""
    from transformers import BatchFeature

    not_stored = ("input_ids", "attention_mask", "mm_token_type_ids")
    inputs = dict(BatchFeature({k: v for k, v in features.items() if k not in not_stored}).convert_to_tensors("pt"))
    grid = inputs.get("image_grid_thw")
    if grid is not None:
        inputs["images_seqlens"] = torch.repeat_interleave(grid[:, 1] * grid[:, 2], grid[:, 0])
    return inputs


class PackedVideos:
    """Videos on their way to an engine: frames whose values are whole numbers travel as bytes, a quarter of the size.

    qwen-vl-utils resizes in uint8 and converts to float32 at the end, so that nothing is lost; frames with other values
    travel as they are. Unpickled, it is the list of videos itself.

    Args:
        videos: frames (T, C, H, W), float32, or pairs of frames and metadata.
    """

    def __init__(self, videos: list[Any]) -> None:
        self._videos = videos

    def __reduce__(self) -> tuple:
        return _unpack, ([_pack(video) for video in self._videos],)


def _pack(video: Any) -> tuple[np.ndarray, str | None, tuple]:
    frames, *rest = video if isinstance(video, tuple) else (video,)
    if not isinstance(frames, Tensor):
        raise TypeError(f"a video of type {type(frames).__name__} cannot be packed; expected a tensor of frames")
    if frames.dtype == torch.float32:
        whole = frames.to(torch.uint8)
        if torch.equal(whole.to(torch.float32), frames):
            return whole.numpy(), "float32", tuple(rest)
    return frames.contiguous().numpy(), None, tuple(rest)


def _unpack(packed: list[tuple[np.ndarray, str | None, tuple]]) -> list[Any]:
    videos = []
    for array, dtype, rest in packed:
        # A copy either way: what comes from the object store is read-only.
        frames = torch.from_numpy(array.astype(dtype) if dtype else array.copy())
        videos.append((frames, *rest) if rest else frames)
    return videos
