"""How media are sampled that do not say so themselves: ``data.care.video`` and ``data.care.image``. Pure.

verl 0.9.1 has no field for it: frame rate, frame count and pixel bounds are read from each record's own dicts alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_EXCLUDED_BY = {
    "nframes": ("fps", "min_frames", "max_frames"),
    "resized_height": ("min_pixels", "max_pixels", "total_pixels"),
    "resized_width": ("min_pixels", "max_pixels", "total_pixels"),
}
"""A key of qwen-vl-utils -> keys that it refuses beside it, or no longer looks at."""


def fill_sampling(
    messages: Sequence[Mapping[str, Any]], defaults: Mapping[str, Mapping[str, Any] | None]
) -> list[dict[str, Any]]:
    """Messages whose media carry the data set's sampling wherever their own keys leave it open.

    Args:
        messages: a prompt with structured content, ``{"type": "video", "video": path, "fps": 1.0}`` and the like.
        defaults: keys of qwen-vl-utils for each type of media, ``{"video": {"fps": 2.0, "max_frames": 16}}``. Frames a
            second, frame counts, pixels a frame.

    Returns:
        New messages; keys of the record win, and ``nframes`` of a record drops the defaults for ``fps`` and its bounds.
    """
    return [{**message, "content": _fill_content(message.get("content"), defaults)} for message in messages]


def _fill_content(content: Any, defaults: Mapping[str, Mapping[str, Any] | None]) -> Any:
    if not isinstance(content, list):
        return content
    return [_fill_item(item, defaults.get(item.get("type")) or {}) for item in content]


def _fill_item(item: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    excluded = {key for own, keys in _EXCLUDED_BY.items() if own in item for key in keys}
    return {**{key: value for key, value in defaults.items() if key not in excluded}, **item}
