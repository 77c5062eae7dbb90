"""Faulty published records: one line that names file, record and field."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verl_care.data.prepare.base import Fields
from verl_care.data.prepare.run import Refused
from verl_care.data.records import DataError


@pytest.mark.parametrize(
    ("changes", "field", "problem"),
    [
        ({"porblem": "x"}, "porblem", "unknown column; write problem"),
        ({"zzz": 1}, "zzz", "unknown column; drop it, or let it pass with --ignore-column zzz"),
        ({"problem": 3}, "problem", "expected text; got 3"),
        ({"problem": None}, "problem", "missing"),
        ({"problem_type": "essay"}, "problem_type", "'essay'"),
        ({"options": "A. cup"}, "options", "expected a list of texts"),
        ({"options": ["A. cup", "pen"]}, r"options\[1\]", "'pen' has no letter"),
        ({"options": ["A. cup", "A. pen"]}, "extra_info.options", "a letter of its own"),
        ({"solution": "<answer>D</answer>"}, "solution", "'D' is not among the options A, B"),
        ({"solution": "A"}, "solution", "expected <answer>"),
        ({"problem_type": "numerical", "options": [], "solution": "<answer>many</answer>"}, "ground_truth", "'many'"),
        ({"path": "../elsewhere/a.mp4"}, "video", "leaves the video folder"),
        ({"path": "CLEVRER/../../a.mp4"}, "video", "leaves the video folder"),
        ({"path": "/etc/a.mp4"}, "video", "leaves the video folder"),
        ({"data_type": "image", "path": "./../a.png"}, "path", "leaves the video folder"),
        ({"data_type": "audio"}, "data_type", "set video or image"),
        ({"problem_id": True}, "problem_id", "expected text; got True"),
    ],
)
def test_one_line_with_file_record_and_field(world, video_r1_record, changes, field, problem):
    path = world.json("Video-R1-260k.json", [video_r1_record(0), video_r1_record(1, **changes)])
    world.clip("CLEVRER/train/video_0.mp4", "CLEVRER/train/video_1.mp4")
    with pytest.raises(DataError, match=rf"{path}, record 1: .*{field}: .*{problem}") as caught:
        world.prepare("video_r1", dev=0)
    assert "\n" not in str(caught.value)
    assert not (world.out / "video_r1" / "train.parquet").exists()


def test_an_unknown_column_can_be_let_pass(world, video_r1_record):
    world.json("Video-R1-260k.json", [video_r1_record(0, mood="good")])
    world.clip("CLEVRER/train/video_0.mp4")
    world.prepare("video_r1", dev=0, ignore_columns=["mood"])
    assert len(world.rows("video_r1", "train")) == 1


@pytest.mark.parametrize("span", [[1, float("nan")], [5, 2], [2, 2], [-1, 2], [1], "1 to 2", [1, True]])
def test_spans_that_are_none(world, span):
    world.json("test.json", [{"video": "a.mp4", "caption": "x", "timestamp": span}])
    with pytest.raises(DataError, match=r"record 0: timestamp: expected"):
        world.prepare("activitynet_tvg")


def test_shares_above_one_are_not_shares(world):
    row = {"dataset": "charades_train", "video": "a.mp4", "problem": "When?", "solution": [0.5, 30.0]}
    world.json("charades_train.json", [row])
    with pytest.raises(DataError, match="record 0: solution: .*shares of the clip"):
        world.prepare("temporal_rlt")


def test_a_published_id_that_is_there_twice(world):
    row = {"qid": 1, "video_uid": "a", "question": "?", "choices": ["x", "y"], "right_answer": "A"}
    world.json("cgbench.json", [row, {**row, "question": "??"}])
    with pytest.raises(DataError, match=r"record 1: id: '1' is there already \(.*record 0\)"):
        world.prepare("cgbench")


def test_text_that_is_not_utf8_names_its_record_in_every_format(world, video_r1_record):
    text = json.dumps([video_r1_record(0), video_r1_record(1, problem="caf@")])
    path = world.text("Video-R1-260k.json", "")
    path.write_bytes(text.encode().replace(b"@", b"\xe9"))
    with pytest.raises(DataError, match="Video-R1-260k.json, record 1: problem: is not valid UTF-8"):
        world.prepare("video_r1")

    path = world.text("test.csv", "")
    path.write_bytes(b"video_id,question\n1,caf\xe9\n")
    world.json("gsub_test.json", {})
    with pytest.raises(DataError, match="test.csv, record 0: question: is not valid UTF-8"):
        world.prepare("nextgqa")

    column = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\2\0\0\0\6\0\0\0"), pa.py_buffer(b"okcaf\xe9"))
    pq.write_table(pa.table({"videoID": column}), world.source / "test-0.parquet")
    with pytest.raises(DataError, match=r"test-0.parquet, record 1: videoID: is not valid UTF-8"):
        world.prepare("video_mme", source=world.source / "test-0.parquet")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("Video-R1-260k.json", "[{]", "is not JSON"),
        ("Video-R1-260k.json", "[3]", "record 0: record: expected an object; got 3"),
        ("Video-R1-260k.json", "[]", "no records"),
        ("other.json", "[]", "none of Video-R1-260k.json"),
    ],
)
def test_files_that_are_none(world, name, content, message):
    world.text(name, content)
    with pytest.raises(DataError, match=message):
        world.prepare("video_r1")


def test_a_csv_line_with_a_value_too_many(world):
    world.text("test.csv", "video_id,question\n1,what,now\n")
    world.json("gsub_test.json", {})
    with pytest.raises(DataError, match=r"test.csv, record 0: line 2: has not one value a column"):
        world.prepare("nextgqa")


def test_errors_are_collected_up_to_a_number_and_left_out_with_quarantine(world, video_r1_record):
    rows = [video_r1_record(number) for number in range(6)]
    rows[1]["options"] = ["cup", "pen"]
    rows[4]["solution"] = "<answer>Q</answer>"
    world.json("Video-R1-260k.json", rows)
    world.clip(*(f"CLEVRER/train/video_{number}.mp4" for number in range(6)))
    with pytest.raises(DataError, match="record 4: .*more than 1 faulty"):
        world.prepare("video_r1", max_errors=1)
    with pytest.raises(Refused, match="2 faulty records and 0 with clips"):
        world.prepare("video_r1", max_errors=2)
    assert not (world.out / "video_r1" / "train.parquet").exists()
    listed = [json.loads(line)["error"] for line in (world.out / "video_r1" / "train.errors.jsonl").open()]
    assert [", record 1: options[0]: " in listed[0], ", record 4: solution: " in listed[1]] == [True, True]
    assert listed == world.told[-2:]

    manifest = world.prepare("video_r1", max_errors=2, quarantine=True, dev=0)
    assert manifest["splits"]["train"]["counts"]["faulty"] == 2
    # What is left keeps its place in the published file.
    assert [row["extra_info"]["index"] for row in world.rows("video_r1", "train")] == [0, 2, 3, 5]
    for row in rows:
        row.update(options=["A. cup", "B. pen"], solution="<answer>A</answer>")
    world.json("Video-R1-260k.json", rows)
    world.prepare("video_r1", dev=0)
    assert not (world.out / "video_r1" / "train.errors.jsonl").exists()


@pytest.mark.parametrize(
    ("read", "value"),
    [("number", "x"), ("number", float("inf")), ("number", True), ("integer", 1.5), ("mapping", []), ("spans", 3)],
)
def test_a_field_of_the_wrong_type_names_itself(read, value):
    with pytest.raises(DataError, match="f.json, record 3: age: expected"):
        getattr(Fields({"age": value}, "f.json, record 3"), read)("age")


def test_options_of_a_data_set_are_checked(world):
    with pytest.raises(DataError, match="--set colour: mvbench has no such option; it has none"):
        world.prepare("mvbench", options={"colour": "red"})
    with pytest.raises(DataError, match="--set open: expected no or yes; got 'maybe'"):
        world.prepare("mmvu", options={"open": "maybe"})
    with pytest.raises(DataError, match="--set subtitle_frames: expected a number"):
        world.prepare("longvideobench", options={"subtitle_frames": "-1"})
    with pytest.raises(DataError, match="--prompt: expected video_r1"):
        world.prepare("mmvu", prompt="plain")
