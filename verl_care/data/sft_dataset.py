"""Data set of verl's supervised trainer (``verl.trainer.sft_trainer``) whose inputs equal those of a rollout.

Set by ``data.custom_cls.path=pkg://verl_care.data.sft_dataset``, ``name=CareSFTDataset``. verl's own
``MultiTurnSFTDataset`` reads clips with whatever reader qwen-vl-utils finds, hands media dicts on with the None entries
that Parquet gives them, and places every video at 24 frames a second. Here media are read, sampled and placed as
``CareDataset`` and the agent loop do, so that the policy meets in training what it was started on.
"""

from __future__ import annotations

import os
import re
from types import SimpleNamespace
from typing import Any

import datasets
import torch
from omegaconf import DictConfig, ListConfig
from torch.utils.data import Dataset
from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
from verl.utils.tokenizer import build_multimodal_processor_inputs

from verl_care.data.dataset import CareDataset
from verl_care.data.records import DataError, RecordError, missing_file, strip_none
from verl_care.data.sampling import fill_sampling
from verl_care.data.supervised import check_supervised_file
from verl_care.workers.positions import SECONDS, use_seconds

MODEL_INPUTS = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")
"""The processor's outputs that the model's forward reads."""


class CareSFTDataset(Dataset):
    """Records of ``verl_care.data.supervised``; the loss covers the last turn, the assistant's, and its end token.

    Args:
        parquet_files: path or paths of Parquet files.
        tokenizer: tokenizer of the policy.
        config: the trainer's ``data`` node: ``max_length``, ``care.video``, ``care.image``, ``care.make_command``,
            ``care.check_media``, ``care.positions`` (``seconds`` as ``care.video.positions``, or ``stock``).
        processor: processor of the policy; needed for records with media.
        max_samples: number of records to keep; -1 keeps all.

    Raises:
        MissingDataError: a data file is not there; the message names the command that makes it.
        RecordError: a faulty record; the message names file, record, field and remedy.
        DataError: records with media, and no processor.
    """

    def __init__(
        self,
        parquet_files: str | list[str] | ListConfig,
        tokenizer: Any,
        config: DictConfig,
        processor: Any = None,
        max_samples: int = -1,
    ) -> None:
        self.care = config.get("care") or {}
        self.config = config
        self.tokenizer = tokenizer
        self.processor = processor
        if self.care.get("positions", SECONDS) == SECONDS:
            use_seconds(processor)
        files = [parquet_files] if isinstance(parquet_files, str) else list(parquet_files)
        for path in files:
            if not os.path.exists(path):
                raise missing_file(path, self.care.get("make_command"))
            check_supervised_file(path, check_media=self.care.get("check_media", True))
        parts = [datasets.load_dataset("parquet", data_files=path)["train"] for path in files]
        self.rows = datasets.concatenate_datasets(parts)
        if 0 < max_samples < len(self.rows):
            self.rows = self.rows.select(range(max_samples))
        if processor is None and any(row["videos"] or row["images"] for row in self.rows):
            raise DataError(
                f"{files[0]}: has records with media, but transformers can load no processor from model.path"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int) -> dict[str, Any]:
        """``input_ids`` (L,), ``loss_mask`` (L,), ``position_ids`` (L,) or (4, L), ``multi_modal_inputs``."""
        row = self.rows[item]
        prompt = fill_sampling(_with_media(row), {kind: self.care.get(kind) for kind in ("video", "image")})
        inputs = self._encode(prompt)
        prompt_ids = inputs.pop("input_ids")[0]
        text = row["messages"][-1]["content"]
        response = [*self.tokenizer.encode(text, add_special_tokens=False), self.tokenizer.eos_token_id]
        input_ids = torch.cat([prompt_ids, torch.tensor(response, dtype=prompt_ids.dtype)])
        if len(input_ids) > self.config.max_length:
            raise RecordError.at(
                f"{row['data_source']}, record {row['extra_info']['index']}",
                "messages",
                f"{len(prompt_ids)} + {len(response)} tokens are more than data.max_length={self.config.max_length}",
                "raise it, or drop the record",
            )
        loss_mask = torch.zeros_like(input_ids)
        loss_mask[len(prompt_ids) :] = 1
        positions = AgentLoopWorker._compute_position_ids(
            SimpleNamespace(processor=self.processor),  # type: ignore[arg-type]
            input_ids[None],
            torch.ones_like(input_ids[None]),
            inputs,
        )[0]
        return {
            "input_ids": input_ids,
            "loss_mask": loss_mask,
            "position_ids": positions,
            # In every record, or the collator looks in vain for it in a batch that begins with text.
            "multi_modal_inputs": {name: inputs[name] for name in MODEL_INPUTS if inputs.get(name) is not None},
        }

    def _encode(self, prompt: list[dict[str, Any]]) -> dict[str, Any]:
        """The prompt with its generation prompt, as the agent loop encodes it."""
        if self.processor is None:
            ids = self.tokenizer.apply_chat_template(
                prompt, add_generation_prompt=True, tokenize=True, return_tensors="pt", return_dict=True
            )
            return {"input_ids": ids["input_ids"]}
        text = self.processor.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        patch_size = self.processor.image_processor.patch_size
        images, videos, _ = CareDataset._process_multi_modal_info(prompt, patch_size, self.config)
        inputs = build_multimodal_processor_inputs(self.processor, text=[text], images=images, videos=videos)
        return dict(inputs.convert_to_tensors("pt"))


def _with_media(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The turns before the response, each placeholder replaced by its medium."""
    media = {kind: iter(row.get(f"{kind}s") or ()) for kind in ("video", "image")}
    messages = []
    for message in row["messages"][:-1]:
        parts: list[dict[str, Any]] = []
        for piece in re.split("(<video>|<image>)", message["content"]):
            kind = piece.strip("<>")
            if piece in ("<video>", "<image>"):
                parts.append({"type": kind, **strip_none(next(media[kind]))})
            elif piece:
                parts.append({"type": "text", "text": piece})
        messages.append({"role": message["role"], "content": parts})
    return messages
