"""Prompts with their media read: chat template, frames and pictures, in the threads of a pool."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from verl_care.evaluation.interface import Request
from verl_care.evaluation.prompts import at_frames


@dataclass(frozen=True)
class Prepared:
    """One prompt with its media, decoded and sized, not yet patches."""

    text: str
    """Chat prompt with one placeholder a medium."""
    images: list[Any]
    videos: list[tuple[Any, dict[str, Any]]]
    """Frames (T, C, H, W) and their metadata."""


class PromptReader:
    """Reads the media of requests; those of one question at the same frames are read once.

    Args:
        processor: the model's processor, or its tokenizer where it has none.
        num_workers: threads.
    """

    def __init__(self, processor: Any, num_workers: int) -> None:
        self._processor = processor
        self._pool = ThreadPoolExecutor(max_workers=num_workers, thread_name_prefix="media")
        self._reading: OrderedDict[tuple[int, int | None], tuple[Any, Future[Prepared]]] = OrderedDict()

    def prefetch(self, requests: Sequence[Request]) -> None:
        """Begins to read what these requests need."""
        for request in requests:
            name = (id(request.question.prompt), request.num_frames)
            if name not in self._reading:
                future = self._pool.submit(self._read, request.question.prompt, request.num_frames)
                # The prompt is kept beside: its id names it only as long as it lives.
                self._reading[name] = (request.question.prompt, future)

    def take(self, requests: Sequence[Request]) -> list[Prepared | Exception]:
        """The prompts of the requests, in order; for one whose media cannot be read, the exception."""
        self.prefetch(requests)
        found: list[Prepared | Exception] = []
        names = [(id(request.question.prompt), request.num_frames) for request in requests]
        for name, members in groupby(names):
            future = self._reading[name][1]
            error = future.exception()
            if error is not None and not isinstance(error, Exception):
                raise error
            found += [error if isinstance(error, Exception) else future.result()] * len(list(members))
        for name in set(names):
            del self._reading[name]
        return found

    def _read(self, messages: Any, num_frames: int | None) -> Prepared:
        from qwen_vl_utils import process_vision_info

        from verl_care.data.video import register_pyav_reader

        register_pyav_reader()
        if num_frames is not None:
            messages = at_frames(messages, num_frames)
        has_media = any(part["type"] != "text" for turn in messages for part in turn["content"])
        if not hasattr(self._processor, "image_processor"):
            if has_media:
                raise ValueError("the model has no processor for images and videos")
            messages = [{**turn, "content": "".join(part["text"] for part in turn["content"])} for turn in messages]
        text = self._processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        if not has_media:
            return Prepared(text, [], [])
        patch_size = int(self._processor.image_processor.patch_size)
        images, videos = process_vision_info(messages, image_patch_size=patch_size, return_video_metadata=True)
        return Prepared(text, images or [], videos or [])

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown(cancel_futures=True)


def cut_at_stop(text: str, stops: Sequence[str]) -> str | None:
    """The text in front of the first stop string; None where there is none in it."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else None
