"""Clips that cannot be used, the development split, overlaps with evaluation sets."""

import json

import pytest

from verl_care.data.prepare.dev_split import split_dev
from verl_care.data.prepare.run import Refused
from verl_care.data.probe import Limits
from verl_care.data.records import DataError


@pytest.fixture
def published(world, video_r1_record):
    def make(numbers=range(8), questions=2):
        rows = [
            video_r1_record(10 * number + turn, path=f"./CLEVRER/train/video_{number}.mp4")
            for number in numbers
            for turn in range(questions)
        ]
        world.json("Video-R1-260k.json", rows)
        return rows

    return make


def clips_of(rows):
    return {row["extra_info"]["video_id"] for row in rows}


def test_clips_that_cannot_be_used_are_listed_and_left_out_only_when_asked(world, published):
    published(range(6), questions=1)
    for number, frames in enumerate((40, 1, 40, 400)):
        world.own_clip(f"CLEVRER/train/video_{number}.mp4", frames, level=number)
    (world.videos / "CLEVRER/train/video_2.mp4").write_bytes(b"no video at all")
    whole = world.own_clip("CLEVRER/train/video_4.mp4", level=99)
    whole.write_bytes(whole.read_bytes()[:300])
    request = {"limits": Limits(max_seconds=20.0), "dev": 0}
    with pytest.raises(Refused, match="0 faulty records and 5 with clips that cannot be used.*--quarantine"):
        world.prepare("video_r1", **request)
    folder = world.out / "video_r1"
    assert not (folder / "train.parquet").exists()
    assert world.told[-4:] == [
        "1 records: missing",
        "1 records: too long",
        "1 records: too short",
        "2 records: unreadable",
    ]
    listed = [json.loads(line) for line in (folder / "train.quarantine.jsonl").open()]
    assert [(entry["index"], entry["cause"]) for entry in listed] == [
        (1, "too short"),
        (2, "unreadable"),
        (3, "too long"),
        (4, "unreadable"),
        (5, "missing"),
    ]
    assert listed[4]["id"] == "CLEVRER/train/video_5.mp4#50"
    assert listed[4]["file"].endswith("video_5.mp4")
    assert listed[2]["detail"] == "40.0 s; at most 20 are wanted"

    manifest = world.prepare("video_r1", quarantine=True, **request)
    counts = manifest["splits"]["train"]["counts"]
    assert counts["quarantined"] == {"missing": 1, "too long": 1, "too short": 1, "unreadable": 2}
    assert [row["extra_info"]["index"] for row in world.rows("video_r1", "train")] == [0]


def test_a_development_split_shares_no_clip_and_depends_on_the_seed_alone(world, published):
    published()
    for number in range(8):
        world.own_clip(f"CLEVRER/train/video_{number}.mp4", level=5 * number)
    # The same clip under another name.
    (world.videos / "CLEVRER/train/video_7.mp4").write_bytes((world.videos / "CLEVRER/train/video_0.mp4").read_bytes())
    splits = []
    for seed in (0, 0, 1, 2):
        world.prepare("video_r1", dev=6, seed=seed)
        train, dev = world.rows("video_r1", "train"), world.rows("video_r1", "dev")
        assert len(train) == 10 and len(dev) == 6
        assert not clips_of(train) & clips_of(dev)
        assert not {row["extra_info"]["media_hash"] for row in train} & {row["extra_info"]["media_hash"] for row in dev}
        assert {row["extra_info"]["split"] for row in dev} == {"dev"}
        splits.append(clips_of(dev))
    assert splits[0] == splits[1]
    assert len({frozenset(split) for split in splits}) > 1


def test_sizes_of_the_development_split(world, published):
    published(range(20), questions=1)
    world.prepare("video_r1", probe=False)
    assert len(world.rows("video_r1", "dev")) == 2
    world.prepare("video_r1", probe=False, dev_fraction=0.25)
    assert len(world.rows("video_r1", "dev")) == 5
    world.prepare("video_r1", probe=False, dev=0)
    assert not (world.out / "video_r1" / "dev.parquet").exists()
    assert world.told[-1] == "video_r1: no development split; ask for one with --dev N"
    with pytest.raises(DataError, match="--dev: 20 of 20 records would leave none"):
        world.prepare("video_r1", probe=False, dev=20)
    published(range(2), questions=9)
    with pytest.raises(DataError, match="every clip has more than 8 records"):
        world.prepare("video_r1", probe=False, dev=8)


def test_split_keeps_records_that_share_any_name_of_a_clip_together():
    def row(index, video_id, media_hash, path):
        info = {"index": index, "video_id": video_id, "media_hash": media_hash}
        return {"extra_info": info, "videos": [{"video": path}], "images": []}

    # 0 and 1 share a name, 1 and 2 the content, 2 and 3 the path: one group of four.
    chain = [row(0, "a", "x", "/1"), row(1, "a", "y", "/2"), row(2, "b", "y", "/3"), row(3, "c", "z", "/3")]
    rest = [row(number, f"v{number}", f"h{number}", f"/p{number}") for number in range(4, 8)]
    for seed in range(20):
        train, dev = split_dev(chain + rest, 4, seed)
        held = {r["extra_info"]["index"] for r in dev}
        assert held.isdisjoint(range(4)) or held >= set(range(4))
        assert len(train) + len(dev) == 8


def holmes(video, question, options=None):
    row = {"video ID": video, "Question ID": 1, "Question Type": "SR", "Question": question, "Answer": "A"}
    return row | {"Options": options or {"A": "cup", "B": "pen"}, "Explanation": ""}


@pytest.mark.parametrize(
    ("video", "question", "way"),
    [
        ("video_31", "Who opened the door?", "video id"),
        ("other", "Who opened the door?", "file"),
        ("unlike", "WHAT appears -- first, in clip 10031?", "question"),
    ],
)
def test_overlaps_are_found_by_content_and_refused_when_strict(world, video_r1_record, video, question, way):
    world.own_clip("CLEVRER/validation/video_10031.mp4", level=7)
    world.own_clip("CLEVRER/train/video_2.mp4", level=50)
    record = video_r1_record(10031, path="./CLEVRER/validation/video_10031.mp4")
    world.json("Video-R1-260k.json", [record, video_r1_record(2)])
    name = "video_10031" if way == "video id" else video
    world.own_clip(f"{name}.mp4", frames=40 if way == "file" else 30, level=7)
    world.json("test_Video-Holmes.json", [holmes(name, question)])
    world.prepare("video_holmes")
    with pytest.raises(Refused, match="video_r1: overlaps 1 evaluation sets, and --strict"):
        world.prepare("video_r1", dev=0, strict=True)
    manifest = world.prepare("video_r1", dev=0)
    told = next(line for line in world.told if line.startswith("video_r1 overlaps"))
    assert f"video_r1 overlaps video_holmes: 1 training records (1 by {way}) and 1 test records" in told
    assert manifest["splits"]["train"]["overlaps"][0]["counts"] == {way: 1}
    # The other way round, when the training set is there first.
    world.told.clear()
    world.prepare("video_holmes")
    assert any(line.startswith("video_r1 overlaps video_holmes: 1 training") for line in world.told)


def test_against_names_files_and_folders_elsewhere(world, video_r1_record):
    world.own_clip("CLEVRER/val/video_10031.mp4", level=7)
    world.json("Video-R1-260k.json", [video_r1_record(0, path="./CLEVRER/val/video_10031.mp4")])
    world.own_clip("video_10031.mp4", frames=30, level=7)
    world.json("test_Video-Holmes.json", [holmes("video_10031", "Who opened the door?")])
    away = world.source / "elsewhere"
    for name in ("one", "two"):
        world.prepare("video_holmes", out=away / name)
    (away / "one" / "test.parquet").rename(away / "two" / "other.parquet")
    for against in ([away / "two"], [away / "two" / "other.parquet"]):
        with pytest.raises(Refused, match="overlaps 1 evaluation sets"):
            world.prepare("video_r1", dev=0, strict=True, against=against)
    with pytest.raises(Refused, match="overlaps 2 evaluation sets"):
        world.prepare("video_r1", dev=0, strict=True, against=[away / "two", away / "two" / "other.parquet"])
    with pytest.raises(DataError, match="one/test.parquet: no such file; set --against"):
        world.prepare("video_r1", dev=0, against=[away / "one"])


def test_sets_of_the_same_origin_without_shared_content_do_not_overlap(world, video_r1_record):
    world.own_clip("CLEVRER/train/video_2.mp4", level=50)
    world.json("Video-R1-260k.json", [video_r1_record(2)])
    # The same generic name in another folder, the same short question with other options.
    world.own_clip("video_2.mp4", level=90)
    options = {"A": "a man", "B": "a dog"}
    world.json("test_Video-Holmes.json", [holmes("video_2", "What appears first in clip 2?", options)])
    world.prepare("video_holmes")
    world.prepare("video_r1", dev=0, strict=True)
    assert not any("overlaps" in line for line in world.told)


def test_the_two_splits_of_one_data_set_are_compared_too(world):
    world.own_clip("a.mp4")
    world.json("train_Video-Holmes.json", [holmes("a", "Who opened the door?")])
    world.json("test_Video-Holmes.json", [holmes("a", "Who closed it?")])
    with pytest.raises(Refused, match="--strict"):
        world.prepare("video_holmes", dev=0, strict=True)
    assert any("1 by video id, 1 by file" in line for line in world.told)


def test_strict_without_anything_to_compare_with_refuses(world, published):
    published(range(2), questions=1)
    with pytest.raises(Refused, match="--strict needs test sets to compare with"):
        world.prepare("video_r1", probe=False, dev=0, strict=True)
    world.prepare("video_r1", probe=False, dev=0)
    assert any("overlaps were not looked for" in line for line in world.told)


def test_a_folder_of_frames_without_frames_is_a_faulty_record(world):
    row = {"video": "a", "question": "Why?", "candidates": ["to eat", "to go"], "answer": "to go"}
    world.json("json/episodic_reasoning.json", [row])
    (world.videos / "tvqa/video_fps3_hq_segment/a").mkdir(parents=True)
    with pytest.raises(DataError, match="episodic_reasoning.json, record 0: video: .*no frames in the folder"):
        world.prepare("mvbench")


def test_a_folder_holds_one_data_set(world, published):
    published(range(2), questions=1)
    world.prepare("video_r1", probe=False, dev=0)
    with pytest.raises(DataError, match="the folder holds video_r1; set --out"):
        world.prepare(
            "video_holmes_mix", source=world.source / "Video-R1-260k.json", out=world.out / "video_r1", probe=False
        )
