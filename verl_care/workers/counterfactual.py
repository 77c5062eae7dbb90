"""Forward passes of verl's actor on counterfactual inputs: responses scored without the picture, or on shuffled frames.

Runs inside the actor's workers, on the rows as the actor sees them: pixels neither pass through the controller nor are
stored a second time. Source: Video-KTR, arXiv 2601.19686; zywang0104/Video-KTR ``grpo_trainer.py``.

The published masked pass sets the attention to vision tokens to 0, and lets the model derive positions from that mask,
which moves every token behind the video. Here the vision tokens are taken out of the sequence and all others keep their
positions: with causal attention that equals masking them, whatever the attention kernel, and costs less.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.single_controller.base.decorator import make_nd_compute_dataproto_dispatch_fn, register
from verl.utils import tensordict_utils as tu
from verl.workers.utils.padding import response_from_nested

from verl_care.data.shuffle import permute_frames
from verl_care.workers.batch import as_list

INPUT_FIELDS = [
    "input_ids",
    "position_ids",
    "prompts",
    "responses",
    "response_mask",
    "loss_mask",
    "multi_modal_inputs",
    "data_source",
    "index",
    "uid",
]
"""Columns of TransferQueue that a pass reads."""

REQUEST = "care_counterfactual"
"""Entry of a batch's ``extra_info`` that says which input to make, see ``edit_inputs``."""


def output_field(kind: str) -> str:
    """Column of TransferQueue that a pass writes: log-probabilities of the response, jagged (rows, response length)."""
    return f"care_{kind}_log_probs"


def mask_vision(data: TensorDict, placeholder_ids: Sequence[int]) -> TensorDict:
    """The rows without pixels and without the tokens that stand for them; other tokens keep their positions.

    Args:
        data: ``input_ids`` and ``prompts``, jagged (rows, tokens); ``position_ids``, jagged (rows, tokens) or
            (rows, 4, tokens); ``multi_modal_inputs``.
        placeholder_ids: ids of the image and the video token.

    Raises:
        ValueError: a prompt whose first token is a vision token; the packed attention kernels find sequences by it.
    """
    vision = torch.tensor(list(placeholder_ids))
    input_ids, position_ids, prompts = [], [], []
    rows = zip(data["input_ids"].unbind(), _unbind_positions(data), data["prompts"].unbind(), strict=True)
    for row, (ids, positions, prompt) in enumerate(rows):
        # Of the prompt alone: a response may name such a token without showing anything.
        stays = torch.ones_like(ids, dtype=torch.bool)
        stays[: len(prompt)] = ~torch.isin(prompt, vision.to(prompt.device))
        if not stays[0]:
            raise ValueError(f"row {row}: the prompt begins with a vision token; expected a chat template before it")
        positions = positions[..., stays]
        if positions.ndim == 2:
            # The first of the four rows counts tokens: it delimits packed sequences and is not part of M-RoPE.
            positions = torch.cat([torch.arange(positions.shape[-1], device=positions.device)[None], positions[1:]])
        input_ids.append(ids[stays])
        position_ids.append(positions)
        prompts.append(prompt[stays[: len(prompt)]])
    edited = data.copy()
    for name, values in (("input_ids", input_ids), ("position_ids", position_ids), ("prompts", prompts)):
        edited[name] = torch.nested.as_nested_tensor(values, layout=torch.jagged)
    tu.assign_non_tensor_stack(edited, "multi_modal_inputs", [{} for _ in input_ids])
    return edited


def _unbind_positions(data: TensorDict) -> list[Tensor]:
    tu.maybe_fix_3d_position_ids(data)
    return list(data["position_ids"].unbind())


def shuffle_video_pixels(
    pixels: Tensor, grid: Tensor, *, temporal_patch_size: int, patch_size: int, identity: str
) -> Tensor:
    """Pixels of a row's videos with the frames of each in another order, never the given one.

    A patch is laid out (channels, frames of a pair, height, width) and patches by pair, so that moving whole frames
    equals processing the shuffled frames anew; pairs are mixed too. A video whose number of frames the processor made
    even shows its last frame twice.

    Args:
        pixels: flattened patches of all videos of the row, (patches, channels * temporal_patch_size * patch_size^2).
        grid: pairs, patch rows and patch columns of each video, (videos, 3), int64.
        temporal_patch_size: frames that one patch holds.
        patch_size: height and width of a patch, in pixels.
        identity: what the permutation belongs to: seed, record, step.

    Raises:
        ValueError: pixels that are not of this layout.
    """
    pairs_hw = [(int(t), int(h) * int(w)) for t, h, w in grid.tolist()]
    num_patches = sum(t * hw for t, hw in pairs_hw)
    frame = patch_size * patch_size
    if pixels.ndim != 2 or pixels.shape[0] != num_patches or pixels.shape[1] % (temporal_patch_size * frame):
        raise ValueError(
            f"pixel_values_videos: expected {num_patches} patches of channels * {temporal_patch_size} * {frame} "
            f"values, as video_grid_thw says; got {tuple(pixels.shape)}. Shuffling knows the layout of Qwen2-VL, "
            "Qwen2.5-VL and Qwen3-VL; for others leave temporal out of care.video_ktr.signals"
        )
    shuffled, start = [], 0
    for number, (t, hw) in enumerate(pairs_hw):
        video = pixels[start : start + t * hw].view(t, hw, -1, temporal_patch_size, frame)
        start += t * hw
        frames = video.permute(0, 3, 1, 2, 4).flatten(0, 1)
        if len(frames) >= 2:
            frames = frames[permute_frames(len(frames), f"{identity}/{number}")]
        pairs = frames.unflatten(0, (t, temporal_patch_size)).permute(0, 2, 3, 1, 4)
        shuffled.append(pairs.reshape(t * hw, -1))
    return torch.cat(shuffled)


def shuffle_frames(data: TensorDict, *, temporal_patch_size: int, patch_size: int, seed: int, step: int) -> TensorDict:
    """The rows with the frames of their videos in another order, the same for all responses to a prompt.

    Args:
        data: ``multi_modal_inputs``, ``data_source``, ``index`` and ``uid``.
        temporal_patch_size: frames that one patch holds.
        patch_size: height and width of a patch, in pixels.
        seed: the run's seed.
        step: the trainer's step; the next visit of a record has another order.
    """
    inputs = []
    of_prompt: dict[str, Tensor] = {}
    columns = (as_list(data[name]) for name in ("multi_modal_inputs", "uid", "data_source", "index"))
    for row, uid, data_source, index in zip(*columns, strict=True):
        if row and "pixel_values_videos" in row:
            # Once for all responses to a prompt: the pixels are most of what a rank holds here.
            if uid not in of_prompt:
                of_prompt[uid] = shuffle_video_pixels(
                    row["pixel_values_videos"],
                    row["video_grid_thw"],
                    temporal_patch_size=temporal_patch_size,
                    patch_size=patch_size,
                    identity=f"{seed}/{data_source}/{index}/{step}",
                )
            row = {**row, "pixel_values_videos": of_prompt[uid]}
        inputs.append(row)
    edited = data.copy()
    tu.assign_non_tensor_stack(edited, "multi_modal_inputs", inputs)
    return edited


def edit_inputs(data: TensorDict, request: dict[str, Any]) -> TensorDict:
    """Makes the input that a request asks for.

    Args:
        data: rows with ``INPUT_FIELDS``.
        request: ``{"kind": "visual", "placeholder_ids": …}``, or ``{"kind": "temporal", …}`` with the arguments of
            ``shuffle_frames``.
    """
    how = {name: value for name, value in request.items() if name != "kind"}
    return mask_vision(data, **how) if request["kind"] == "visual" else shuffle_frames(data, **how)


class CounterfactualMixin:
    """Adds the passes to verl's actor worker."""

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def compute_counterfactual_log_prob(self, data: TensorDict) -> TensorDict | None:
        """Writes ``output_field(kind)`` of the rows, under the present weights and without a gradient."""
        request = tu.pop(data, key=REQUEST)
        response_mask = data["response_mask"]
        output = self.actor.infer_batch(edit_inputs(data, request))  # type: ignore[attr-defined]
        if output is None:
            return None
        log_probs = response_from_nested(output["log_probs"], response_mask.cpu())
        return TensorDict({output_field(request["kind"]): log_probs}, batch_size=len(log_probs))
