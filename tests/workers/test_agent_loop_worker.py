"""Media shared by the responses of a prompt: held against stock verl's worker on the same inputs, bit for bit."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter

import pytest
import torch
from PIL import Image

from verl_care.data import dataset, video
from verl_care.data.positions import rope_index
from verl_care.testing import agent_loops, clips, tiny_models
from verl_care.workers import shared_inputs
from verl_care.workers.positions import ENV_NAME
from verl_care.workers.shared_inputs import PARTITION, SharedInputs, drop_unused

pytestmark = pytest.mark.timeout(300)

N = 4


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {name: tiny_models.save(tmp_path_factory.mktemp(name), name) for name in tiny_models.FAMILIES}


@pytest.fixture(params=tiny_models.FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.linear_gradient("L").convert("RGB").resize((90, 60)).save(path)
    return str(path)


@pytest.fixture
def contents(tmp_path, picture):
    """A prompt of each kind; the first has two clips of different lengths and an image."""
    long = str(clips.write_clip(tmp_path / "long.mp4", seconds=10, fps=4))
    short = str(clips.write_clip(tmp_path / "short.mp4", seconds=1.5, fps=8, width=96))
    sampling = {"min_pixels": 28 * 28, "max_pixels": 112 * 112}
    question = {"type": "text", "text": "What colour is it?"}
    return {
        "video": [
            {"type": "video", "video": long, "nframes": 8, **sampling},
            {"type": "image", "image": picture},
            {"type": "video", "video": short, "nframes": 4, **sampling},
            question,
        ],
        "image": [{"type": "image", "image": picture}, question],
        "text": [question],
    }


class Run:
    """One worker's run over the three prompts."""

    def __init__(self, folder, contents, *, ours, positions="stock", once=True, **fields):
        config = agent_loops.compose(
            folder,
            "data.max_prompt_length=2048",
            f"care.video.positions={positions}",
            f"care.video.once={once}",
        )
        self.client = agent_loops.EchoClient(range(10, 40))
        self.worker = agent_loops.make_worker(config, self.client, ours=ours)
        self.uids = {kind: uuid.uuid4().hex for kind in contents}
        prompts = [
            agent_loops.make_prompt(self.uids[kind], content, index=i, **fields)
            for i, (kind, content) in enumerate(contents.items())
        ]
        agent_loops.run_prompts(self.worker, prompts, N)
        self.rows = {kind: agent_loops.read_rows(self.uids[kind], N) for kind in contents}


def counted(monkeypatch):
    """Counts decodes of clips and runs of video processors."""
    from transformers.video_processing_utils import BaseVideoProcessor

    seen = Counter()
    read, process = video.decode_frames, BaseVideoProcessor.preprocess

    def decode(*args, **kwargs):
        seen["decode"] += 1
        return read(*args, **kwargs)

    def preprocess(self, *args, **kwargs):
        seen["process"] += 1
        return process(self, *args, **kwargs)

    monkeypatch.setattr(video, "decode_frames", decode)
    monkeypatch.setattr(BaseVideoProcessor, "preprocess", preprocess)
    return seen


def assert_same(ours, theirs, *, without=()):
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - set(without):
        if isinstance(ours[name], torch.Tensor):
            assert ours[name].dtype == theirs[name].dtype, name
            assert torch.equal(ours[name], theirs[name]), name
        else:
            assert ours[name] == theirs[name], name


OWN = ("uid", "multi_modal_inputs", "metrics", "mm_processor_output")
"""Fields that differ between runs, or are compared by themselves."""


def test_rows_and_requests_are_those_of_stock_verl(transfer_queue, models, family, contents, monkeypatch):
    monkeypatch.setenv(ENV_NAME, "stock")
    seen = counted(monkeypatch)
    theirs = Run(models[family], contents, ours=False)
    # Two clips in one of the prompts; each of its responses runs the processor over both, three times with a reward.
    assert seen == {"decode": 2 * N, "process": 2 * N}
    seen.clear()
    ours = Run(models[family], contents, ours=True)
    assert seen == {"decode": 2, "process": 1}

    for kind in contents:
        for our_row, their_row in zip(ours.rows[kind], theirs.rows[kind], strict=True):
            assert_same(our_row, their_row, without=OWN)
            assert isinstance(our_row["multi_modal_inputs"], SharedInputs) == (kind != "text")
            # A second copy of the pixels in every row of stock verl, made for SGLang and read by nobody here.
            assert our_row["mm_processor_output"] is None
            assert (their_row["mm_processor_output"] is None) == (kind != "video")
            assert_same(dict(our_row["multi_modal_inputs"]), dict(their_row["multi_modal_inputs"]))
    assert {"pixel_values", "pixel_values_videos", "image_grid_thw", "video_grid_thw", "images_seqlens"} <= set(
        ours.rows["video"][0]["multi_modal_inputs"]
    )

    def order(run):
        return sorted(run.client.requests, key=lambda request: request["sampling_params"]["seed"])

    for our_request, their_request in zip(order(ours), order(theirs), strict=True):
        assert our_request["prompt_ids"] == their_request["prompt_ids"]
        assert (our_request["video_data"] is None) == (their_request["video_data"] is None)
        for our_video, their_video in zip(
            our_request["video_data"] or (), their_request["video_data"] or (), strict=True
        ):
            assert torch.equal(our_video[0], their_video[0]) and our_video[1] == their_video[1]
        for our_image, their_image in zip(
            our_request["image_data"] or (), their_request["image_data"] or (), strict=True
        ):
            assert our_image.tobytes() == their_image.tobytes()


def test_one_word_gives_back_stock_verl(transfer_queue, models, contents, monkeypatch):
    seen = counted(monkeypatch)
    run = Run(models["qwen2_5_vl"], contents, ours=True, once=False)
    assert seen == {"decode": 2 * N, "process": 2 * N}
    assert not any(isinstance(row["multi_modal_inputs"], SharedInputs) for rows in run.rows.values() for row in rows)


def test_positions_by_seconds_are_those_of_the_whole_sequence(transfer_queue, models, contents):
    """Computed once for the prompt and continued for each response."""
    stock = Run(models["qwen2_5_vl"], contents, ours=True)
    run = Run(models["qwen2_5_vl"], contents, ours=True, positions="seconds")
    processor = run.worker.processor
    for kind, rows in run.rows.items():
        for row, stock_row in zip(rows, stock.rows[kind], strict=True):
            inputs, ids = row["multi_modal_inputs"], row["input_ids"][None]
            expected, _ = rope_index(
                ids,
                (ids == processor.image_token_id).long() + 2 * (ids == processor.video_token_id).long(),
                image_grid_thw=inputs.get("image_grid_thw"),
                video_grid_thw=inputs.get("video_grid_thw"),
                second_per_grid_ts=inputs.get("second_per_grid_ts"),
                tokens_per_second=2,
            )
            assert torch.equal(row["position_ids"][1:], expected[:, 0])
            assert torch.equal(row["position_ids"][0], torch.arange(ids.shape[1]))
            assert torch.equal(row["position_ids"], stock_row["position_ids"]) == (kind != "video")


def test_pixels_are_stored_once_and_go_when_nothing_refers_to_them(transfer_queue, models, contents):
    run = Run(models["qwen2_5_vl"], contents, ours=True)
    uids = {run.uids["video"], run.uids["image"]}
    assert run.worker._stored == uids
    stored = transfer_queue.kv_list(PARTITION)[PARTITION]
    assert uids <= stored.keys() and run.uids["text"] not in stored

    inputs = run.rows["video"][0]["multi_modal_inputs"]
    in_rows = sum(value.nbytes for name, value in inputs._small.items())
    assert in_rows < 1000 < sum(inputs[name].nbytes for name in ("pixel_values", "pixel_values_videos"))

    def clear(kind):
        rows = [f"{run.uids[kind]}_{session}_0" for session in range(N)]
        transfer_queue.kv_clear(keys=[run.uids[kind], *rows], partition_id="train")

    assert asyncio.run(drop_unused(uids)) == uids
    clear("video")
    assert asyncio.run(drop_unused(uids)) == {run.uids["image"]}
    left = transfer_queue.kv_list(PARTITION)[PARTITION]
    assert run.uids["video"] not in left and run.uids["image"] in left
    shared_inputs._remembered.clear()
    with pytest.raises(ValueError, match=f"prompt {run.uids['video']}.*care.video.once=false"):
        SharedInputs(run.uids["video"], {}, ("pixel_values",))["pixel_values"]


def test_a_response_with_a_placeholder_is_placed_as_stock_verl_places_it(transfer_queue, models, contents):
    config = agent_loops.compose(models["qwen2_5_vl"], "data.max_prompt_length=2048", "care.video.positions=stock")
    processor = agent_loops.make_worker(config, None, ours=False).processor
    tokens = [10, processor.tokenizer.convert_tokens_to_ids("<|image_pad|>"), 11]
    statuses = []
    for ours in (True, False):
        worker = agent_loops.make_worker(config, agent_loops.EchoClient(tokens, length=3), ours=ours)
        uid = uuid.uuid4().hex
        agent_loops.run_prompts(worker, [agent_loops.make_prompt(uid, contents["text"])], 1)
        statuses.append(transfer_queue.kv_list("train")["train"][uid]["status"])
    assert statuses == ["failure", "failure"]


def test_an_error_of_the_media_fails_every_session_and_the_prompt(transfer_queue, models, contents, monkeypatch):
    seen = Counter()

    def fail(*args, **kwargs):
        seen["decode"] += 1
        raise video.VideoError("clip.mp4: broken")

    monkeypatch.setattr(dataset.CareDataset.__mro__[1], "_process_multi_modal_info", fail)
    config = agent_loops.compose(models["qwen2_5_vl"], "data.max_prompt_length=2048")
    worker = agent_loops.make_worker(config, agent_loops.EchoClient([5]), ours=True)
    uid = uuid.uuid4().hex
    agent_loops.run_prompts(worker, [agent_loops.make_prompt(uid, contents["video"])], N)
    assert transfer_queue.kv_list("train")["train"][uid]["status"] == "failure"
    assert seen == {"decode": 1} and worker._stored == set()
