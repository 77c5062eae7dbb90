"""The small task for answers with times: what clips show, what is asked, and what the scorer makes of the answers."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from verl_care.data import demo_model, grounding_clips
from verl_care.data.grounding_clips import Clip
from verl_care.data.records import check_file, check_record
from verl_care.data.video import probe
from verl_care.rewards.scorer import compute_score


def test_answers_by_hand():
    clip = Clip("blue", 3, 6)
    assert [clip.answer(kind) for kind in ("when", "what", "both")] == ["3 to 6", "C", "C; 3 to 6"]
    # Seven spans of two seconds in eight, six of three, five of four.
    assert [len(grounding_clips.answers_of(kind)) for kind in ("when", "what", "both")] == [18, 4, 72]


def test_every_frame_tells_its_second_and_whether_the_colour_is_there():
    frames = grounding_clips.render_clip(Clip("red", 2, 4), random.Random(0))
    assert len(frames) == 16
    lit = []
    for number, frame in enumerate(frames):
        pixels = np.asarray(frame).astype(int)
        above, below = pixels[:14], pixels[14:]
        assert (above[..., 0].mean() - above[..., 1].mean() > 100) == (2 <= number // 2 < 4)
        cells = below.mean(axis=2).reshape(2, 7, 4, 7).mean(axis=(1, 3)).ravel()
        assert (cells > 200).sum() == 1
        lit.append(int(cells.argmax()))
    assert lit == [number // 2 for number in range(16)]


def test_records_are_sound_and_their_answers_score(tmp_path):
    records = grounding_clips.write_records(tmp_path, "train", 3, seed=0)
    assert len(records) == 9 and len({record["data_source"] for record in records}) == 3
    for record in records:
        check_record(record, "record")
        # Sixteen frames, all of which two a second sample: a token a second.
        assert probe(record["videos"][0]["video"]) == (16, pytest.approx(2.0))
        truth = record["reward_model"]["ground_truth"]
        response = f"<think> hmm </think> <answer> {truth.replace(';', ' ;')} </answer>"
        result = compute_score(record["data_source"], response, truth, record["extra_info"])
        assert (result["acc"], result["format"]) == (1.0, 1.0)


def test_the_tokenizer_knows_every_word_and_prompts_differ_in_length(tmp_path):
    processor = grounding_clips.build_processor()
    records = grounding_clips.write_records(tmp_path, "train", 3, seed=0)
    prompts = demo_model.encode_records(records, processor)
    unknown = processor.tokenizer.unk_token_id
    assert not any((prompt.input_ids == unknown).any() for prompt in prompts)
    assert len({len(prompt.input_ids) for prompt in prompts}) > 4
    assert all(prompt.grid.tolist() == [[8, 2, 2]] for prompt in prompts)


def test_a_folder_is_built_whole_or_not_at_all(tmp_path, monkeypatch):
    folder, plan = tmp_path / "temporal_rlt", demo_model.WarmStart(answer_steps=1, soften_steps=1)
    size = {"train_clips": 16, "dev_clips": 2, "plan": plan}
    with monkeypatch.context() as patch:
        patch.setattr(demo_model, "save_model", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            grounding_clips.build_folder(folder, seed=0, **size)
    assert not list(tmp_path.iterdir())
    told = []
    grounding_clips.build_folder(folder, seed=0, **size, on_progress=lambda *progress: told.append(progress))
    assert told[-1] == ("warm start", 2, 2)
    assert [check_file(str(folder / f"{split}.parquet"), check_media=True) for split in ("train", "dev")] == [48, 6]
    media = {row["videos"][0]["video"] for row in pq.read_table(folder / "dev.parquet").to_pylist()}
    assert media == {str(folder / "clips" / f"dev{number}.mp4") for number in range(2)}
    assert [path.name for path in tmp_path.iterdir()] == ["temporal_rlt"]


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    command = [sys.executable, "-m", "verl_care.data.grounding_clips", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stderr.strip().endswith("remove it, or name another folder")
    assert not list(tmp_path.iterdir())
