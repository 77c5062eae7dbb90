"""How a clip and a question are known again in another data set."""

import pytest

from verl_care.data.leakage import Trace, find_overlap, known_overlaps, question_key, read_traces, trace_row, video_key
from verl_care.data.prepare.table import PREPARERS
from verl_care.data.records import DataError, to_row, write_rows


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("./NeXT-QA/NExTVideo/1027/8129290253.mp4", "8129290253"),
        ("STAR/Charades_v1_480/AO8RW.mp4", "star/AO8RW_12.0_17.5.mp4"),
        ("LLaVA-Video-178K/activitynet/v_QOlSCBRmfWY.mp4", "v_QOlSCBRmfWY"),
        ("activitynet/v_QOlSCBRmfWY_1.0_22.5.MP4", "QOlSCBRmfWY"),
        ("CLEVRER/val/video_10009.mp4", "clevrer/video_10009.mp4"),
        ("a\\b\\fFjv93ACGo8.webm", "data/fFjv93ACGo8"),
    ],
)
def test_one_clip_under_two_names(ours, theirs):
    assert video_key(ours) == video_key(theirs)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("CLEVRER/train/video_1.mp4", "perception/videos/video_1.mp4"),
        ("Art/0.mp4", "Chemistry/0.mp4"),
        ("scannet/scene0011_00", "scannet/scene0011_01"),
        ("fFjv93ACGo8", "ffjv93acgo8"),
    ],
)
def test_two_clips_of_like_names(ours, theirs):
    assert video_key(ours) != video_key(theirs)


def test_wording_of_a_question_does_not_count_but_its_options_do():
    key = question_key("What is he doing?", ["A. Eating.", "B. going out"])
    assert key == question_key("what is  HE doing", ["A. going out", "B. eating"])
    assert key != question_key("What is he doing?", ["A. eating", "B. sleeping"])
    assert question_key("How many chairs are in this room?") is None
    long = "How many chairs stand around the larger of both tables?"
    assert question_key(long) == question_key(long.upper().replace("?", " ?"))


def test_a_record_without_names_leaves_no_trace():
    row = to_row(data_source="demo", index=0, question="?", problem_type="OCR", ground_truth="A", images=["/a.png"])
    assert trace_row(row) is None


def test_counts_of_an_overlap():
    train = [
        Trace(record="t/0", video_id="a", question="q"),
        Trace(record="t/1", video_id="a"),
        Trace(record="t/2", file="f"),
        Trace(record="t/3", video_id="z", file="z", question="z"),
    ]
    test = [
        Trace(record="e/0", video_id="a", file="f"),
        Trace(record="e/1", question="q"),
        Trace(record="e/2", file="n"),
    ]
    overlap = find_overlap(train, test, "t", "e")
    assert (overlap.records, overlap.tests) == (3, 2)
    assert overlap.counts == {"video id": 2, "file": 1, "question": 1}
    assert str(overlap).startswith(
        "t overlaps e: 3 training records (2 by video id, 1 by file, 1 by question) and 2 test"
    )
    # Keys of one kind never meet those of another.
    assert find_overlap([Trace(record="t/0", video_id="x")], [Trace(record="e/0", file="x")], "t", "e") is None


def test_a_development_split_is_no_test_set(tmp_path):
    rows = [
        to_row(
            data_source="s",
            index=number,
            question="?",
            problem_type="OCR",
            ground_truth="A",
            extra_info={"video_id": f"clip{number}x", "split": split},
        )
        for number, split in enumerate(("dev", "test"))
    ]
    write_rows(rows, tmp_path / "a.parquet")
    assert [trace.record for trace in read_traces(tmp_path / "a.parquet")] == ["s/1"]
    with pytest.raises(DataError, match="cannot read"):
        read_traces(tmp_path / "none.parquet")


def test_the_list_names_data_sets_that_exist():
    for entry in known_overlaps():
        assert set(entry) == {"train", "evaluation", "what", "source"}
        assert {entry["train"], entry["evaluation"]} <= set(PREPARERS)
