import asyncio
import pickle
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from verl.utils.dataset.rl_dataset import collate_fn, get_dataset_class

from verl_care.data.dataset import CareDataset, MediaError
from verl_care.data.records import MissingDataError, RecordError, to_row, write_rows
from verl_care.data.video import VideoError

PROCESSOR = SimpleNamespace()


def config(tmp_path, **more):
    custom = {"path": "pkg://verl_care.data.dataset", "name": "CareDataset"}
    base = {"cache_dir": str(tmp_path / "cache"), "filter_overlong_prompts": False, "custom_cls": custom}
    return OmegaConf.create({**base, **more})


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")


@pytest.fixture
def rows(tmp_path, clip):
    image = tmp_path / "image.png"
    Image.new("RGB", (56, 56), (0, 200, 0)).save(image)
    shared = {"data_source": "demo", "problem_type": "multiple choice", "options": ["A. cup", "B. pen"]}
    video = {"video": str(clip), "min_pixels": 28 * 28, "max_pixels": 56 * 56}
    return [
        to_row(**shared, index=0, question="What?", ground_truth="A", videos=[{**video, "nframes": 4}]),
        to_row(**shared, index=1, question="What?", ground_truth="B", images=[str(image)]),
        to_row(**shared, index=2, question="What?", ground_truth="B"),
        to_row(**shared, index=3, question="What?", ground_truth="B", videos=[{**video, "fps": 2.0}]),
    ]


@pytest.fixture
def train_file(tmp_path, rows):
    path = tmp_path / "train.parquet"
    write_rows(rows, path)
    return str(path)


def media(dataset, number):
    messages = dataset[number]["raw_prompt"]
    return asyncio.run(CareDataset.process_multi_modal_info(messages, image_patch_size=14, config=dataset.config))


def test_verl_finds_the_class(tmp_path):
    assert get_dataset_class(config(tmp_path)).__qualname__ == "CareDataset"


def test_text_image_and_video_rows_in_one_batch(tmp_path, train_file):
    dataset = CareDataset(train_file, None, config(tmp_path), PROCESSOR)
    assert len(dataset) == 4
    batch = collate_fn([dataset[number] for number in range(4)])
    assert batch["index"].tolist() == [0, 1, 2, 3]
    assert [info["problem_type"] for info in batch["extra_info"]] == ["multiple choice"] * 4
    video = dataset[0]["raw_prompt"][0]["content"][0]
    assert video["type"] == "video" and video["nframes"] == 4
    assert None not in video.values()

    images, videos, audios = media(dataset, 0)
    assert images is None and audios is None
    frames, metadata = videos[0]
    assert frames.shape[:2] == (4, 3) and frames.dtype == torch.float32
    assert metadata["video_backend"] == "pyav" and metadata["frames_indices"] == [0, 10, 19, 29]
    images, videos, _ = media(dataset, 1)
    assert len(images) == 1 and videos is None
    assert media(dataset, 2) == (None, None, None)
    assert media(dataset, 3)[1][0][1]["frames_indices"] == [0, 6, 12, 17, 23, 29]


def test_files_and_a_selection(tmp_path, train_file, rows):
    more = tmp_path / "more.parquet"
    write_rows([dict(rows[2], extra_info={**rows[2]["extra_info"], "index": 9})], more)
    dataset = CareDataset(OmegaConf.create([train_file, str(more)]), None, config(tmp_path), PROCESSOR)
    assert [dataset[number]["index"] for number in range(5)] == [0, 1, 2, 3, 9]
    assert len(CareDataset(train_file, None, config(tmp_path), PROCESSOR, max_samples=2)) == 2


def test_a_saved_dataset_reads_its_files_again(tmp_path, train_file):
    dataset = pickle.loads(pickle.dumps(CareDataset(train_file, None, config(tmp_path), PROCESSOR)))
    dataset.resume_dataset_state()
    assert [dataset[number]["index"] for number in range(4)] == [0, 1, 2, 3]


def test_a_faulty_record_stops_it_at_construction(tmp_path, train_file):
    table = pq.read_table(train_file).to_pylist()
    table[2]["reward_model"]["ground_truth"] = None
    pq.write_table(pq.read_table(train_file).from_pylist(table), train_file)
    with pytest.raises(RecordError, match=r"train.parquet, record 2: reward_model.ground_truth: .*; set the expected"):
        CareDataset(train_file, None, config(tmp_path), PROCESSOR)


def test_missing_media_stop_it_at_construction_unless_switched_off(tmp_path, train_file, clip):
    clip.unlink()
    with pytest.raises(RecordError, match="record 0: media: no such file: .*clip.mp4"):
        CareDataset(train_file, None, config(tmp_path), PROCESSOR)
    dataset = CareDataset(train_file, None, config(tmp_path, care={"check_media": False}), PROCESSOR)
    with pytest.raises(VideoError, match="clip.mp4: cannot open the video") as caught:
        media(dataset, 0)
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_a_broken_clip_and_a_broken_image_are_named(tmp_path, train_file, clip):
    dataset = CareDataset(train_file, None, config(tmp_path), PROCESSOR)
    clip.write_bytes(clip.read_bytes()[:2000])
    with pytest.raises(VideoError, match="clip.mp4"):
        media(dataset, 0)
    (tmp_path / "image.png").write_bytes(b"no image")
    with pytest.raises(MediaError, match="cannot read the media of a prompt .*image.png") as caught:
        media(dataset, 1)
    assert isinstance(caught.value.__cause__, OSError)


def test_a_missing_data_file_names_the_command(tmp_path):
    path = str(tmp_path / "none.parquet")
    with pytest.raises(MissingDataError, match="none.parquet: no such data file; .*verl-care prepare NAME"):
        CareDataset(path, None, config(tmp_path), PROCESSOR)
    care = {"make_command": "verl-care prepare video_r1"}
    with pytest.raises(MissingDataError, match="make it with: verl-care prepare video_r1$"):
        CareDataset(path, None, config(tmp_path, care=care), PROCESSOR)


def test_the_data_sets_sampling_fills_what_a_record_leaves_open(tmp_path, train_file):
    care = {"video": {"fps": 1.0, "max_frames": 4, "min_frames": 2}, "image": {"max_pixels": 28 * 28}}
    dataset = CareDataset(train_file, None, config(tmp_path, care=care), PROCESSOR)
    own, open_ = (dataset[number]["raw_prompt"][0]["content"][0] for number in (0, 3))
    assert own["nframes"] == 4 and "fps" not in own
    assert open_["fps"] == 2.0 and open_["max_frames"] == 4
    assert dataset[1]["raw_prompt"][0]["content"][0]["max_pixels"] == 28 * 28
    # The clip has 30 frames at 10 a second: 2 a second would be 6, the bound leaves 4.
    assert len(media(dataset, 3)[1][0][1]["frames_indices"]) == 4


def test_files_whose_extra_info_differs_make_one_table(tmp_path, rows):
    paths = []
    for name, info in (("a", {"question_type": "count", "duration": 3.0}), ("b", {"question_type": ["x", "y"]})):
        changed = [{**row, "data_source": name, "extra_info": {**row["extra_info"], **info}} for row in rows[1:3]]
        paths.append(str(tmp_path / f"{name}.parquet"))
        write_rows(changed, paths[-1])
    dataset = CareDataset(paths, None, config(tmp_path), PROCESSOR)
    assert len(dataset) == 4
    infos = [dataset[number]["extra_info"] for number in range(4)]
    # What no column can hold is text; all else is as it was.
    assert [info["question_type"] for info in infos] == ['"count"', '"count"', '["x", "y"]', '["x", "y"]']
    assert [info["duration"] for info in infos] == [3.0, 3.0, None, None]
    assert [info["index"] for info in infos] == [1, 2, 1, 2]
    assert len(CareDataset(paths, None, config(tmp_path), PROCESSOR, max_samples=3)) == 3


def test_clips_of_a_test_set_are_sampled_as_its_protocol_says(tmp_path, rows):
    path = str(tmp_path / "mixed.parquet")
    clip = {key: value for key, value in rows[3]["videos"][0].items() if key != "fps"}
    write_rows(
        [
            {**rows[3], "videos": [clip], "extra_info": {**rows[3]["extra_info"], "index": index, "split": split}}
            for index, split in enumerate(("dev", "test"))
        ],
        path,
    )
    care = {"video": {"nframes": 8}, "test_video": {"demo": {"fps": 1.0, "max_frames": 4}, "other": {"nframes": 2}}}
    dataset = CareDataset([path], None, config(tmp_path, care=care), PROCESSOR)
    (dev, test) = ([part for part in dataset[n]["raw_prompt"][0]["content"] if part["type"] == "video"] for n in (0, 1))
    assert dev[0]["nframes"] == 8 and "fps" not in dev[0]
    assert (test[0]["fps"], test[0]["max_frames"]) == (1.0, 4) and "nframes" not in test[0]


def test_records_with_media_need_a_processor(tmp_path, train_file):
    with pytest.raises(ValueError, match="transformers can load no processor from actor_rollout_ref.model.path"):
        CareDataset([train_file], None, config(tmp_path), None)
