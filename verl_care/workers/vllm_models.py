"""vLLM's Qwen2.5-VL with the metadata of its videos kept, so that seconds between frames are the real ones.

vLLM 0.24 parses frames and metadata and then drops the metadata for this model (``multimodal/parse.py``,
``_parse_video_data``); transformers' processor falls back to 24 frames a second, and every video is placed as if two
frames were 2/24 s apart. Its model takes ``second_per_grid_ts`` as it should.
"""

from collections.abc import Mapping
from typing import Any

from transformers import BatchFeature
from transformers.video_utils import VideoMetadata
from vllm.model_executor.models import qwen2_5_vl
from vllm.model_executor.models.qwen2_vl import Qwen2VLMultiModalDataParser
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.parse import VideoProcessorItems

_FIELDS = frozenset(VideoMetadata.__dataclass_fields__)


class DataParser(Qwen2VLMultiModalDataParser):
    """Keeps a video and its metadata together; the pair is also what the engine's cache of processed media hashes."""

    def _parse_video_data(self, data: Any) -> Any:
        items = super()._parse_video_data(data)
        given = [data] if isinstance(data, tuple) else data
        if isinstance(items, VideoProcessorItems) and isinstance(given, list):
            # The parser has taken the pairs apart, in their order.
            metadata = [item[1] if isinstance(item, tuple) else None for item in given]
            if any(metadata):
                pairs = zip(items.data, metadata, strict=True)
                items.data = [(video, known) if known else video for video, known in pairs]
        return items


class ProcessingInfo(qwen2_5_vl.Qwen2_5_VLProcessingInfo):
    """vLLM's, with the parser above."""

    def get_data_parser(self) -> DataParser:
        return DataParser(
            self.get_hf_config().vision_config.spatial_merge_size,
            expected_hidden_size=self._get_expected_hidden_size(),
        )


class MultiModalProcessor(qwen2_5_vl.Qwen2_5_VLMultiModalProcessor):
    """vLLM's, handing the metadata to transformers' processor."""

    def _call_hf_processor(
        self,
        prompt: str,
        mm_data: Mapping[str, object],
        mm_kwargs: Mapping[str, object],
        tok_kwargs: Mapping[str, object],
    ) -> BatchFeature:
        videos: Any = mm_data.get("videos")
        if videos is not None and any(isinstance(video, tuple) for video in videos):
            pairs = [video if isinstance(video, tuple) else (video, {}) for video in videos]
            metadata = [
                # Without a frame rate transformers takes 24, as it does where nothing is known of any video.
                VideoMetadata(
                    **{"total_num_frames": len(video), **{key: known[key] for key in known if key in _FIELDS}}
                )
                for video, known in pairs
            ]
            mm_data = {**mm_data, "videos": [video for video, _ in pairs], "video_metadata": metadata}
            # The frames are those that the agent loop has chosen.
            mm_kwargs = {"do_sample_frames": False, **mm_kwargs}
        return super()._call_hf_processor(prompt, mm_data, mm_kwargs, tok_kwargs)


def _metadata(video: Any, known: Mapping[str, Any]) -> VideoMetadata:
    """Of one video; without a frame rate transformers takes 24, as it does where nothing is known of any video."""
    return VideoMetadata(**{"total_num_frames": len(video), **{key: known[key] for key in known if key in _FIELDS}})


@MULTIMODAL_REGISTRY.register_processor(
    MultiModalProcessor, info=ProcessingInfo, dummy_inputs=qwen2_5_vl.Qwen2_5_VLDummyInputsBuilder
)
class Qwen2_5_VLForConditionalGeneration(qwen2_5_vl.Qwen2_5_VLForConditionalGeneration):  # noqa: N801  (vLLM's name)
    """vLLM's model; only what is processed for it differs."""
