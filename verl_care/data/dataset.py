"""verl's data set with records checked before training and videos read by PyAV.

Set by ``data.custom_cls.path=pkg://verl_care.data.dataset``, ``name=CareDataset``. Keys of its own in the ``data``
node: ``data.care.make_command`` (what makes the data files; for the error when they are missing) and
``data.care.make_commands`` (the same by name of ``data.care.val_sets``), ``data.care.check_media`` (whether every
medium must be a file on this machine that is there; default true), ``data.care.video`` and ``data.care.image`` (how
media are sampled that do not say so themselves), ``data.care.test_video`` (the same by data source for the videos of
test sets), ``data.care_video.cache_dir`` (folder that keeps decoded frames for later epochs; default none) and
``data.care_video.cache_gib`` (its size; default 100).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import DictConfig
from verl.utils.dataset.rl_dataset import RLHFDataset

from verl_care.data.records import DataError, check_file, missing_file, strip_none
from verl_care.data.sampling import fill_sampling
from verl_care.data.val_sets import command_for, is_test_row
from verl_care.data.video import BACKEND, VideoError, register_pyav_reader


class MediaError(DataError):
    """Media of a prompt that cannot be read; the message names the files."""


def _media_of(messages: list[dict]) -> list[str]:
    """Names of the media in a prompt's messages, for an error message."""
    names = []
    for message in messages:
        content = message.get("content")
        for item in content if isinstance(content, list) else ():
            if isinstance(item, Mapping) and item.get("type") in ("image", "video"):
                source = item.get("video", item.get("image", item.get("image_url")))
                names.append(source if isinstance(source, str) else f"{item['type']} in memory")
    return names


def _differing_fields(paths: Iterable[str]) -> list[str]:
    """Keys of ``extra_info`` that have one type in one Parquet file and another in the next: no table can hold both."""
    types: dict[str, pa.DataType] = {}
    differing = set()
    for path in paths:
        schema = pq.read_schema(path)
        info = schema.field("extra_info").type if "extra_info" in schema.names else ()
        for field in info:
            if not pa.types.is_null(field.type) and types.setdefault(field.name, field.type) != field.type:
                differing.add(field.name)
    return sorted(differing)


def _with_text(part: datasets.Dataset, names: Sequence[str]) -> datasets.Dataset:
    """The records with these keys of ``extra_info`` as JSON text."""
    features = part.features.copy()
    own = [name for name in names if name in features["extra_info"]]
    features["extra_info"] = {**features["extra_info"], **dict.fromkeys(own, datasets.Value("string"))}

    def convert(row: dict[str, Any]) -> dict[str, Any]:
        info = row["extra_info"]
        return {"extra_info": {**info, **{name: json.dumps(info[name]) for name in own}}}

    return part.map(convert, features=features)


class CareDataset(RLHFDataset):
    """Records of ``verl_care.data.records``: text, images and videos in any order.

    Args:
        data_files: path or paths of Parquet or JSON files.
        tokenizer: tokenizer of the policy.
        config: verl's ``data`` node.
        processor: processor of the policy; needed for records with media.
        max_samples: number of records to keep; -1 keeps all.

    Raises:
        MissingDataError: a data file is not there; the message names the command that makes it.
        RecordError: a faulty record; the message names file, record, field and remedy.
        DataError: records with media, and no processor.
    """

    def _download(self, use_origin_parquet: bool = False) -> None:
        care = self.config.get("care") or {}
        for path in self.original_data_files:
            if "://" not in path and not os.path.exists(path):
                raise missing_file(path, command_for(care, path))
        super()._download(use_origin_parquet=use_origin_parquet)

    def _read_files_and_tokenize(self) -> None:
        care = self.config.get("care") or {}
        seen: dict[str, tuple[int, str]] = {}
        for path in self.data_files:
            check_file(path, seen, check_media=care.get("check_media", True))
        self._load()
        if self.processor is None and any(
            row.get(key) for row in self.dataframe for key in (self.video_key, self.image_key)
        ):
            raise DataError(
                f"{self.data_files[0]}: has records with media, but transformers can load no processor from "
                "actor_rollout_ref.model.path; see the warning above, and the image_processor_type in the model's "
                "preprocessor_config.json"
            )

    def _load(self) -> None:
        """Puts the files into one table, as verl does, whatever their ``extra_info`` has."""
        differing = _differing_fields(path for path in self.data_files if path.endswith(".parquet"))
        if not differing:
            super()._read_files_and_tokenize()
            return
        parts = [
            datasets.load_dataset("parquet" if path.endswith(".parquet") else "json", data_files=path)["train"]
            for path in self.data_files
        ]
        self.dataframe = datasets.concatenate_datasets([_with_text(part, differing) for part in parts])
        print(f"dataset len: {len(self.dataframe)}")
        if 0 < self.max_samples < len(self.dataframe):
            rows = np.arange(len(self.dataframe))
            if self.shuffle:
                rows = np.random.default_rng(self.seed).permutation(rows)
            self.dataframe = self.dataframe.select(rows[: self.max_samples])
        self.dataframe = self.maybe_filter_out_long_prompts(self.dataframe)

    def _build_messages(self, example: dict, key: str) -> list[dict]:
        for column in (self.image_key, self.video_key):
            if example.get(column):
                example[column] = [
                    strip_none(media) if isinstance(media, Mapping) else media for media in example[column]
                ]
        messages = super()._build_messages(example, key)
        care = self.config.get("care") or {}
        sampling = {kind: care.get(kind) for kind in ("video", "image")}
        if is_test_row(example.get("extra_info")):
            test_video = (care.get("test_video") or {}).get(example.get("data_source"))
            sampling["video"] = test_video or sampling["video"]
        return fill_sampling(messages, sampling)

    @classmethod
    def _process_multi_modal_info(
        cls, messages: list[dict], image_patch_size: int, config: DictConfig
    ) -> tuple[Any, Any, Any]:
        """Reads the media of a prompt; verl calls it in the agent loop's workers, on a thread.

        Raises:
            VideoError: a video that cannot be read; the message names the file.
            MediaError: any other failure; the message names the prompt's media.
        """
        register_pyav_reader()
        try:
            if (config.get("care_video") or {}).get("cache_dir"):
                return cls._process_with_cache(messages, image_patch_size, config)
            return super()._process_multi_modal_info(messages, image_patch_size, config)
        except VideoError:
            raise
        except Exception as error:
            names = ", ".join(_media_of(messages)) or "none"
            raise MediaError(f"cannot read the media of a prompt ({names}): {error}") from error

    @classmethod
    def _process_with_cache(
        cls, messages: list[dict], image_patch_size: int, config: DictConfig
    ) -> tuple[Any, Any, Any]:
        """As qwen-vl-utils' ``process_vision_info``, with videos from files kept on disk."""
        from qwen_vl_utils import vision_process

        from verl_care.data.frame_cache import entry_name, open_cache

        reader = vision_process.get_video_reader_backend()
        if reader != BACKEND:
            raise MediaError(
                f"data.care_video.cache_dir: frames are kept only of the reader {BACKEND}; {reader} is chosen by "
                "FORCE_QWENVL_VIDEO_READER"
            )
        cache = open_cache(str(config.care_video.cache_dir), float(config.care_video.get("cache_gib") or 100))
        images, videos = [], []
        has_media = any(isinstance(message.get("content"), list) for message in messages)
        for item in vision_process.extract_vision_info(messages) if has_media else ():
            if "image" in item or "image_url" in item:
                images.append(vision_process.fetch_image(item, image_patch_size=image_patch_size))
                continue

            def make(item: dict = item) -> tuple[Any, dict[str, Any], float]:
                (frames, metadata), sample_fps = vision_process.fetch_video(
                    item,
                    image_patch_size=image_patch_size,
                    return_video_sample_fps=True,
                    return_video_metadata=True,
                )
                return frames, metadata, sample_fps

            # Frames in memory are decoded already; what a URL holds may change.
            source = item["video"]
            is_file = isinstance(source, str) and "://" not in source.removeprefix("file://")
            frames, metadata, _ = cache.get(entry_name(item, image_patch_size, reader), make) if is_file else make()
            videos.append((frames, metadata))
        return images or None, videos or None, cls._extract_audio_info(messages)
