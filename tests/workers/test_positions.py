"""Positions of videos: worked by hand, held against verl's own older rule, and switched on and off."""

import importlib.metadata
import sys
from types import SimpleNamespace

import pytest
import torch
from transformers.models.qwen2_5_vl import Qwen2_5_VLConfig, Qwen2_5_VLModel
from verl.models.transformers.qwen2_vl import get_rope_index as verl_rope_index

from verl_care.data.positions import rope_index
from verl_care.workers.positions import ENV_NAME, positions_of_process, use_seconds

# 2 text, a video of 3 x 1 x 2 tokens, 1 text.
TYPES = torch.tensor([[0, 0, 2, 2, 2, 2, 2, 2, 0]])
IDS = torch.where(TYPES == 2, 8, 5)
GRID = torch.tensor([[3, 2, 4]])


def place(seconds, **options):
    options = {"tokens_per_second": 2, **options}
    return rope_index(IDS, TYPES, video_grid_thw=GRID, second_per_grid_ts=seconds, **options)


@pytest.mark.parametrize(
    ("seconds", "times"),
    [
        (1.0, [2, 2, 4, 4, 6, 6]),
        (0.6, [2, 2, 3, 3, 4, 4]),  # 2 + floor(1.2), 2 + floor(2.4); an integer of seconds would give 2 throughout
        (2.6, [2, 2, 7, 7, 12, 12]),  # 2 + floor(5.2), 2 + floor(10.4)
        (0.1, [2, 2, 2, 2, 2, 2]),
    ],
)
def test_time_goes_by_real_seconds_and_text_follows_the_largest_position(seconds, times):
    positions, delta = place([seconds])
    assert positions[0, 0].tolist() == [0, 1, *times, max(times[-1], 3) + 1]
    assert positions[1, 0].tolist() == [0, 1, *[2] * 6, max(times[-1], 3) + 1]
    assert positions[2, 0].tolist() == [0, 1, *[2, 3] * 3, max(times[-1], 3) + 1]
    assert delta.item() == max(times[-1], 3) + 2 - 9


def test_padding_and_several_media():
    types = torch.tensor([[0, 2, 2, 0, 1, 1, 1, 1, 0]])
    mask = torch.tensor([[0, *[1] * 9]])
    positions, _ = rope_index(
        torch.zeros(1, 10, dtype=torch.int64),
        torch.cat([torch.zeros(1, 1, dtype=torch.int64), types], dim=1),
        image_grid_thw=torch.tensor([[1, 4, 4]]),
        video_grid_thw=torch.tensor([[2, 2, 2]]),
        second_per_grid_ts=torch.tensor([1.5]),
        attention_mask=mask,
        tokens_per_second=2,
    )
    assert positions[:, 0].tolist() == [
        [0, 0, 1, 4, 5, 6, 6, 6, 6, 8],
        [0, 0, 1, 1, 5, 6, 6, 7, 7, 8],
        [0, 0, 1, 1, 5, 6, 7, 6, 7, 8],
    ]


@pytest.mark.parametrize("grids", [torch.tensor([[2, 2, 4]]), torch.tensor([[3, 2, 4], [1, 2, 2]]), None])
def test_grids_that_do_not_fit_are_an_error(grids):
    with pytest.raises(ValueError, match="grids"):
        rope_index(IDS, TYPES, video_grid_thw=grids)


def test_a_second_too_many_is_an_error():
    with pytest.raises(ValueError, match="second_per_grid_ts: 2 values for 1 videos"):
        place([1.0, 2.0])


class Qwen2_5_VLProcessor:  # noqa: N801  (told by its name)
    image_processor = SimpleNamespace(merge_size=2)
    tokenizer = SimpleNamespace(
        convert_tokens_to_ids={"<|image_pad|>": 7, "<|video_pad|>": 8, "<|vision_start|>": 9}.get
    )
    image_token_id, video_token_id = 7, 8

    def __init__(self):
        self.config = Qwen2_5_VLConfig(vision_config={"tokens_per_second": 2})


@pytest.mark.parametrize("seconds", [0.25, 0.5, 1.0, 1.25, 2.6, 5.0])
def test_same_positions_as_verl_s_own_rule_with_real_seconds(seconds):
    """`verl.models.transformers.qwen2_vl.get_rope_index`, which verl 0.9.1's agent loop no longer calls."""
    ids = torch.tensor([1, 9, *[8] * 16, 2, 3, 9, *[7] * 4, 4])
    grids = {"video_grid_thw": torch.tensor([[4, 4, 4]]), "image_grid_thw": torch.tensor([[1, 4, 4]])}
    theirs = verl_rope_index(Qwen2_5_VLProcessor(), ids, second_per_grid_ts=torch.tensor([seconds]), **grids)
    types = ((ids == 7) + 2 * (ids == 8))[None]
    ours, _ = rope_index(ids[None], types, second_per_grid_ts=torch.tensor([seconds]), tokens_per_second=2, **grids)
    assert torch.equal(ours[:, 0], theirs)


def test_transformers_still_needs_the_rule():
    """When this fails, transformers places videos by real seconds itself: `use_seconds` can go."""
    processor = Qwen2_5_VLProcessor()
    processor.get_vision_position_ids = Qwen2_5_VLModel.get_vision_position_ids.__get__(processor)
    inputs = {"input_ids": IDS, "mm_token_type_ids": TYPES, "video_grid_thw": GRID}
    theirs, _ = Qwen2_5_VLModel.get_rope_index(processor, **inputs, second_per_grid_ts=torch.tensor([0.6]))
    assert theirs[0, 0, 2:8].tolist() == [2] * 6  # int(0.6) = 0
    theirs, _ = Qwen2_5_VLModel.get_rope_index(processor, **inputs, second_per_grid_ts=torch.tensor([1.0]))
    assert theirs[0, 0, -1].item() == 4 < place([1.0])[0][0, 0, -1].item() == 7


def test_a_processor_is_asked_with_the_seconds_of_its_own_output():
    processor = Qwen2_5_VLProcessor()
    use_seconds(processor)
    inputs = {"second_per_grid_ts": torch.tensor([0.6]), "video_grid_thw": GRID}
    positions, _ = processor.get_rope_index(
        input_ids=IDS, video_grid_thw=GRID, attention_mask=None, **processor.get_rope_index_kwargs(inputs)
    )
    assert torch.equal(positions, place([0.6])[0])


def test_processors_of_other_models_are_left_alone():
    processor = SimpleNamespace()
    use_seconds(processor)
    use_seconds(None)
    assert vars(processor) == {}


@pytest.mark.parametrize(("value", "word"), [(None, "stock"), ("", "stock"), ("seconds", "seconds")])
def test_the_word_of_the_environment(monkeypatch, value, word):
    monkeypatch.delenv(ENV_NAME, raising=False)
    if value is not None:
        monkeypatch.setenv(ENV_NAME, value)
    assert positions_of_process() == word


def test_another_word_is_an_error(monkeypatch):
    monkeypatch.setenv(ENV_NAME, "real")
    with pytest.raises(ValueError, match="VERL_CARE_POSITIONS: expected seconds or stock; got 'real'"):
        positions_of_process()


@pytest.mark.parametrize("word", ["seconds", "stock"])
def test_the_hf_engine_goes_by_the_word(monkeypatch, word):
    from verl_care.workers.cpu.hf_rollout import PromptPreparer

    monkeypatch.setenv(ENV_NAME, word)
    processor = Qwen2_5_VLProcessor()
    PromptPreparer(SimpleNamespace(processor=processor, tokenizer=None))
    assert hasattr(processor, "get_rope_index_kwargs") == (word == "seconds")


@pytest.mark.parametrize("word", [None, "stock"])
def test_vllm_s_entry_point_imports_nothing_where_nobody_asks(monkeypatch, word):
    from verl_care.workers import vllm_plugin

    monkeypatch.delenv(ENV_NAME, raising=False)
    if word:
        monkeypatch.setenv(ENV_NAME, word)
    monkeypatch.setitem(sys.modules, "vllm", None)  # an import of it would raise
    vllm_plugin.register()


def test_vllm_finds_the_entry_point():
    from verl_care.workers import vllm_plugin

    [entry] = importlib.metadata.entry_points(group="vllm.general_plugins", name="verl_care_positions")
    assert entry.load() is vllm_plugin.register
