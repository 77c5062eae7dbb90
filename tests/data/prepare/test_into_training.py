"""What preparers write is what training reads: several sets as one validation set, and the supervised set."""

from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from verl_care.data.dataset import CareDataset
from verl_care.data.supervised import check_supervised_file
from verl_care.data.val_sets import is_test_row


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")


def test_prepared_sets_join_into_one_validation_set(world, video_r1_record, tmp_path):
    """Three test sets, one of which calls another kind of value `question_type`, beside a development split."""
    world.clip("a.mp4", "scannet/scene0011_00.mp4", "Cm73.mp4")
    for number in range(2):
        world.own_clip(f"CLEVRER/train/video_{number}.mp4", level=50 * number)
    training = world.json("Video-R1-260k.json", [video_r1_record(0), video_r1_record(1)])
    world.prepare("video_r1", source=training, dev=1)
    scan = {"id": 0, "dataset": "scannet", "scene_name": "scene0011_00", "question": "How large?", "options": None}
    scan |= {"ground_truth": "4.5", "question_type": "room_size_estimation"}
    world.prepare("vsi_bench", source=world.jsonl("test.jsonl", [scan]))
    qa = {"uid": "4", "question": "What year?\n(A) 1636\n(B) 1366", "answer": "B", "question_type": ["reasoning", "x"]}
    video = {"key": "Cm73", "type": "cartoon", "video_info": {"duration_minutes": 45}, "qa": [qa]}
    world.prepare("lvbench", source=world.jsonl("video_info.meta.jsonl", [video]))
    long = {"id": "a_0", "video_id": "a", "video_path": "a.mp4", "subtitle_path": "a.json", "question": "Which?"}
    long |= {"correct_choice": 1, "question_category": "T2A", "duration_group": 15, "duration": 4.0}
    long |= {"starting_timestamp_for_subtitles": 0, "candidates": ["x", "y"]}
    world.prepare("longvideobench", source=world.json("lvb_val.json", [long]))

    names = {"video_r1": "dev", "vsi_bench": "test", "lvbench": "test", "longvideobench": "test"}
    files = [str(world.out / name / f"{part}.parquet") for name, part in names.items()]
    config = OmegaConf.create({"cache_dir": str(tmp_path / "cache"), "filter_overlong_prompts": False})
    dataset = CareDataset(files, None, config, SimpleNamespace())
    rows = {dataset[number]["data_source"]: dataset[number] for number in range(len(dataset))}
    assert {name: is_test_row(row["extra_info"]) for name, row in rows.items()} == {
        "video_r1": False,
        "vsi_bench": True,
        "lvbench": True,
        # Whose published questions are of a split called validation.
        "longvideobench": True,
    }
    assert rows["lvbench"]["extra_info"]["question_type"] == '["reasoning", "x"]'
    assert rows["vsi_bench"]["reward_model"]["ground_truth"] == "4.5"


def test_the_supervised_set_is_one_that_training_takes(world, video_r1_record):
    world.clip("CLEVRER/train/video_0.mp4")
    world.json("Video-R1-COT-165k.json", [video_r1_record(process="<think>hm</think>")])
    world.prepare("video_r1_cot", dev=0)
    assert check_supervised_file(str(world.out / "video_r1_cot" / "train.parquet"), check_media=True) == 1
