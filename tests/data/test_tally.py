"""The study's task: clips with known totals, traces, and a warm-started model that is right as often as it looks."""

from __future__ import annotations

import random
import statistics

import pyarrow.parquet as pq
import pytest
import torch
from qwen_vl_utils import process_vision_info

from verl_care.data import demo_model, tally
from verl_care.data.records import check_record
from verl_care.data.video import probe
from verl_care.rewards.scorer import compute_score
from verl_care.workers.positions import use_seconds


def test_totals_by_hand():
    clip = tally.Clip(("red", "blue", "green", "blue"))
    # 1, 1 + 3, 4 + 2, 6 + 3, modulo 4.
    assert [clip.running_total(k) for k in range(6)] == [0, 1, 0, 2, 1, 1]
    assert clip.total == 1
    assert tally.trace(clip, 3) == "<think>red 1 blue 0 green 2</think><answer>C</answer>"
    assert tally.trace(clip, 5) == "<think>red 1 blue 0 green 2 blue 1 black 1</think><answer>B</answer>"


def test_clips_have_the_events_that_the_task_says():
    rng = random.Random(0)
    counts = [len(tally.draw_clip(rng).events) for _ in range(4000)]
    assert min(counts) == 2 and max(counts) <= 16
    # Geometric with mean 6 from 2 on, without what exceeds 16: 2 + 0.8 / 0.2 less a little.
    chance = [0.8 ** (m - 2) * 0.2 for m in range(2, 17)]
    expected = sum(m * p for m, p in zip(range(2, 17), chance, strict=True)) / sum(chance)
    assert statistics.fmean(counts) == pytest.approx(expected, abs=0.2)


def test_warm_start_traces_look_at_as_many_events_as_chance_has_it():
    rng = random.Random(0)
    pairs = [tally.draw_pairs(rng) for _ in range(8000)]
    # 25 % full ones, and one in e^(15/4) of the others.
    assert pairs.count(16) / len(pairs) == pytest.approx(0.25 + 0.75 * 0.0235, abs=0.02)
    assert statistics.fmean(pairs) == pytest.approx(7.3, abs=0.3)


def test_frames_show_one_event_a_pair_and_black_after_the_last():
    clip = tally.Clip(("green", "red"))
    frames = tally.render_clip(clip, random.Random(0))
    assert len(frames) == 32 and frames[0].size == (28, 28)
    for first, second in zip(frames[::2], frames[1::2], strict=True):
        assert first.tobytes() == second.tobytes()
    means = [[statistics.fmean(band.tobytes()) for band in frame.split()] for frame in frames]
    for frame, colour in ((0, "green"), (2, "red"), (4, "black"), (31, "black")):
        assert means[frame] == pytest.approx(tally.RGB[colour], abs=3)


def test_records_are_sound_and_traces_score(tmp_path):
    records = tally.write_records(tmp_path, "train", 6, seed=0)
    assert len({len(record["prompt"][0]["content"]) for record in records}) == len(tally.QUESTIONS)
    for record in records:
        check_record(record, "record")
        # Events a second apart.
        assert probe(record["videos"][0]["video"]) == (32, pytest.approx(2.0))
        clip = tally.clip_of(record)
        for pairs in (2, 16):
            text = tally.trace(clip, pairs)
            result = compute_score(
                record["data_source"], text, record["reward_model"]["ground_truth"], record["extra_info"]
            )
            assert result["format"] == 1.0
            assert result["acc"] == float(clip.running_total(pairs) == clip.total)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    size = tally.Size(train_clips=8, warm_clips=160, held_out_clips=64, warm_steps=90)
    folder = tmp_path_factory.mktemp("tally") / "assets"
    return folder, size, tally.build_folder(folder, seed=0, size=size)


@pytest.mark.timeout(600)
def test_a_model_that_thinks_of_k_events_is_right_where_the_rest_adds_nothing(built, tmp_path):
    """The study's precondition: accuracy rises with thinking alone, as far as the clips have it."""
    _, size, manifest = built
    clips = [tally.clip_of(row) for row in tally.write_records(tmp_path, "held_out", size.held_out_clips, seed=0)]
    for pairs, accuracy in manifest["accuracy"].items():
        tracer = statistics.fmean(clip.running_total(int(pairs)) == clip.total for clip in clips)
        # Two clips of 64 misread.
        assert accuracy == pytest.approx(tracer, abs=2 / 64), f"{pairs} pairs"
    assert manifest["accuracy"]["1"] < 0.35 and manifest["accuracy"]["16"] > 0.95


def test_a_build_is_used_again_and_another_size_is_not(built):
    folder, size, manifest = built
    before = (folder / "model" / "model.safetensors").stat().st_mtime_ns
    assert tally.build_folder(folder, seed=0, size=size) == manifest
    assert (folder / "model" / "model.safetensors").stat().st_mtime_ns == before
    assert not list(folder.parent.glob(".*partial*"))
    rows = pq.read_table(folder / "train.parquet").to_pylist()
    assert len(rows) == 8 and all(row["videos"][0]["video"].startswith(str(folder)) for row in rows)


def test_the_warm_start_places_clips_as_training_does(tmp_path):
    """Else the first step answers about clips that it cannot tell apart."""
    records, processor = tally.write_records(tmp_path, "train", 3, seed=0), tally.build_processor()
    model = tally.build_model(processor.tokenizer, seed=0)
    prompts = demo_model.encode_records(records, processor)
    batch = demo_model.collate(model, prompts, [torch.tensor([1, 2, 3])] * 3)
    use_seconds(processor)
    processor.config = model.config
    for row, (record, prompt) in enumerate(zip(records, prompts, strict=True)):
        images, videos = process_vision_info(
            demo_model.messages_of(record), image_patch_size=14, return_video_metadata=True
        )
        clips, metadata = zip(*videos, strict=True)
        text = processor.apply_chat_template(demo_model.messages_of(record), add_generation_prompt=True)
        inputs = processor(
            text=[text],
            images=images,
            videos=list(clips),
            video_metadata=list(metadata),
            do_sample_frames=False,
            return_tensors="pt",
        )
        length = inputs["input_ids"].shape[1]
        assert inputs["input_ids"][0].tolist() == prompt.input_ids.tolist()
        positions, _ = processor.get_rope_index(
            inputs["input_ids"],
            video_grid_thw=inputs["video_grid_thw"],
            **processor.get_rope_index_kwargs(inputs),
        )
        assert torch.equal(batch["position_ids"][:, row, :length], positions[:, 0])
        # The response goes on after the last second.
        assert batch["position_ids"][:, row, length].tolist() == [int(positions.max()) + 1] * 3


def test_questions_differ_in_tokens():
    tokenizer = tally.build_processor().tokenizer
    assert tokenizer.unk_token_id not in tokenizer(" ".join(tally.QUESTIONS) + tally.OPTIONS)["input_ids"]
    assert len({len(tokenizer(question)["input_ids"]) for question in tally.QUESTIONS}) == len(tally.QUESTIONS)
    longest = demo_model.response_ids(tokenizer, tally.trace(tally.Clip(("red",) * 16), 16))
    assert len(longest) == tally.MAX_RESPONSE_TOKENS
