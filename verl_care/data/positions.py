"""Rotary positions of Qwen2-VL and Qwen2.5-VL: real seconds along time, text after the largest position. Pure.

The rule of Qwen2.5-VL's technical report (arXiv 2502.13923 §2.1.2) and of transformers 4.52
(``modeling_qwen2_5_vl.py``, ``get_rope_index``), computed as vLLM does (``models/qwen2_5_vl.py``,
``get_mrope_input_positions``), so that both agree to the last position: the temporal position of patch i is
``floor(i * seconds * tokens_per_second)`` in float64. transformers 5.9 truncates the seconds to an integer first, and
places the text after a video by its height and width alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

IMAGE, VIDEO = 1, 2
"""Token types, as in the processors' ``mm_token_type_ids``."""


def rope_index(
    input_ids: Tensor,
    token_types: Tensor,
    *,
    image_grid_thw: Tensor | None = None,
    video_grid_thw: Tensor | None = None,
    second_per_grid_ts: Tensor | list[float] | None = None,
    attention_mask: Tensor | None = None,
    spatial_merge_size: int = 2,
    tokens_per_second: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Positions (time, height, width) of every token.

    Args:
        input_ids: (B, L) int64, placeholders expanded.
        token_types: (B, L): 0 text, 1 image, 2 video.
        image_grid_thw: (images, 3) int64, patches along time, height and width, in the order of the placeholders.
        video_grid_thw: (videos, 3) int64, likewise.
        second_per_grid_ts: seconds that one temporal patch of each video stands for, (videos,); None: 1 each.
        attention_mask: (B, L), 0 where padding is; None: no padding.
        spatial_merge_size: patches along height and width that make one token.
        tokens_per_second: positions a second, of the model's vision config.

    Returns:
        Positions (3, B, L) int64, 0 on padding; and (B, 1): the position of the next token minus the row's length.

    Raises:
        ValueError: placeholders and grids do not fit.
    """
    seconds = [1.0] * (0 if video_grid_thw is None else len(video_grid_thw))
    if second_per_grid_ts is not None:
        # By float32, as the processor's tensor reaches the rollout engine.
        seconds = [float(value) for value in torch.as_tensor(second_per_grid_ts, dtype=torch.float32)]
        if video_grid_thw is None or len(seconds) != len(video_grid_thw):
            found = 0 if video_grid_thw is None else len(video_grid_thw)
            raise ValueError(f"second_per_grid_ts: {len(seconds)} values for {found} videos")
    images = _grids(image_grid_thw, [1.0] * (0 if image_grid_thw is None else len(image_grid_thw)), spatial_merge_size)
    videos = _grids(video_grid_thw, [value * tokens_per_second for value in seconds], spatial_merge_size)

    positions = torch.zeros(3, *input_ids.shape, dtype=torch.int64)
    deltas = torch.zeros(len(input_ids), 1, dtype=torch.int64)
    for row in range(len(input_ids)):
        kept = slice(None) if attention_mask is None else attention_mask[row].bool()
        values = _row(token_types[row][kept].cpu().numpy(), {IMAGE: images, VIDEO: videos})
        positions[:, row, kept] = torch.from_numpy(values)
        deltas[row] = (int(values.max()) + 1 if values.size else 0) - values.shape[1]
    left = [name for name, grids in (("image", images), ("video", videos)) if next(grids, None) is not None]
    if left:
        raise ValueError(f"more {left[0]} grids than {left[0]} placeholders in the prompt")
    return positions.to(input_ids.device), deltas.to(input_ids.device)


def _grids(grid_thw: Tensor | None, intervals: list[float], merge: int) -> Iterator[tuple[int, int, int, float]]:
    rows = [] if grid_thw is None else grid_thw.tolist()
    return iter([(t, h // merge, w // merge, interval) for (t, h, w), interval in zip(rows, intervals, strict=True)])


def _row(types: np.ndarray, grids: dict[int, Iterator[tuple[int, int, int, float]]]) -> np.ndarray:
    """Positions of one sequence without padding, (3, L)."""
    borders = np.flatnonzero(np.diff(types)) + 1
    parts = []
    position = 0
    for run in np.split(types, borders):
        if not run.size:
            continue
        if run[0] == 0:
            parts.append(np.broadcast_to(np.arange(position, position + run.size), (3, run.size)))
            position += run.size
            continue
        filled = 0
        while filled < run.size:
            grid = next(grids[int(run[0])], None)
            if grid is None:
                raise ValueError(f"{run.size} placeholders of one medium, of which the grids explain {filled}")
            t, h, w, interval = grid
            part = np.indices((t, h, w))
            if interval != 1.0:
                part[0] = (part[0] * interval).astype(np.int64)
            part = part.reshape(3, -1) + position
            parts.append(part)
            filled += part.shape[1]
            position = int(part.max()) + 1
        if filled != run.size:
            raise ValueError(f"{run.size} placeholders of one medium, but its grids make {filled}")
    return np.concatenate(parts, axis=1).astype(np.int64) if parts else np.zeros((3, 0), dtype=np.int64)
