import copy
import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_care.data.records import (
    DataError,
    MissingDataError,
    RecordError,
    check_file,
    check_record,
    missing_file,
    strip_none,
    to_row,
    write_rows,
)
from verl_care.rewards.scorer import PROBLEM_TYPES

ANSWERS = {
    "multiple choice": "B",
    "numerical": "3.5",
    "OCR": "NO EXIT",
    "free-form": "a ball",
    "regression": "4",
    "temporal grounding": "[[2, 6.5]]",
    "grounded QA": '{"answer": "B", "spans": [[2, 6.5]]}',
}


def row(index=0, problem_type="multiple choice", **changes):
    options = ["A. cup", "B. pen"] if problem_type in ("multiple choice", "grounded QA") else []
    built = to_row(
        data_source="demo",
        index=index,
        question="What is seen first?",
        problem_type=problem_type,
        ground_truth=ANSWERS[problem_type],
        options=options,
        videos=[{"video": "/clips/1.mp4", "nframes": 8}],
    )
    return {**built, **changes}


def changed(path, value):
    """A good row with one value at a dotted path replaced, or dropped if ``value`` is ``...``."""
    built = copy.deepcopy(row())
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    target = built
    for parent in parents:
        target = target[parent]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return built


def test_a_good_row():
    record = check_record(row(7))
    assert record.prompt_key == "demo/7"
    assert (record.problem_type, record.ground_truth) == ("multiple choice", "B")
    assert record.options == ("A. cup", "B. pen")
    assert record.files == ("/clips/1.mp4",)


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
def test_every_problem_type(problem_type):
    assert check_record(row(problem_type=problem_type)).problem_type == problem_type


@pytest.mark.parametrize(
    ("path", "value", "field", "problem"),
    [
        ("data_source", ..., "data_source", "expected text; got None"),
        ("data_source", 3, "data_source", "expected text; got 3"),
        ("prompt", ..., "prompt", "expected a list of messages"),
        ("prompt", "What?", "prompt", "expected a list"),
        ("prompt", [], "prompt", "expected a list of messages"),
        ("prompt", ["What?"], "prompt", "expected a list of messages"),
        ("prompt.0.content", " ", r"prompt\[0\].content", "expected text"),
        ("prompt.0.content", [{"type": "text", "text": "?"}], r"prompt\[0\].content", "expected text"),
        ("prompt.0.content", "<video>\ud800", r"prompt\[0\].content", "not valid UTF-8"),
        ("prompt.0.role", None, r"prompt\[0\].role", "expected text"),
        ("prompt.0.role", "assistant", "prompt", "ends with role 'assistant'"),
        ("prompt.0.content", "no video", "videos", "1 given, but the prompt has 0 <video>"),
        ("prompt.0.content", "<video><video>", "videos", "1 given, but the prompt has 2 <video>"),
        ("prompt.0.content", "<video><image>", "images", "0 given, but the prompt has 1 <image>"),
        ("prompt.0.content", "<video><audio>", "audios", "0 given, but the prompt has 1 <audio>"),
        ("videos", [], "videos", "0 given, but the prompt has 1 <video>"),
        ("videos", None, "videos", "0 given"),
        ("videos", "/clips/1.mp4", "videos", "expected a list"),
        ("videos.0", {"nframes": 8}, r"videos\[0\]", "expected a path, or a dict with video"),
        ("videos.0", "", r"videos\[0\]", "expected a path"),
        ("videos.0.fps", 2.0, r"videos\[0\]", "both fps and nframes"),
        ("videos.0.nframes", 1, r"videos\[0\].nframes", "expected a number >= 2; got 1"),
        ("videos.0.nframes", "8", r"videos\[0\].nframes", "got '8'"),
        ("videos.0", {"video": "a", "fps": 0}, r"videos\[0\].fps", "expected a number > 0"),
        ("videos.0", {"video": "a", "fps": float("nan")}, r"videos\[0\].fps", "expected a number"),
        (
            "videos.0",
            {"video": "a", "min_frames": 8, "max_frames": 4},
            r"videos\[0\]",
            "min_frames 8 is above max_frames",
        ),
        ("videos.0", {"video": "a", "video_start": 2, "video_end": 1}, r"videos\[0\]", "video_start 2 is above"),
        ("videos.0.max_pixels", 50_000, r"videos\[0\].max_pixels", "50000 is below the 100352 pixels"),
        ("images", [{"path": "a.png"}], "images", "1 given, but the prompt has 0 <image>"),
        ("reward_model", ..., "reward_model.ground_truth", "expected text; got None"),
        ("reward_model", None, "reward_model.ground_truth", "expected text; got None"),
        ("reward_model.ground_truth", None, "reward_model.ground_truth", "expected text; got None"),
        ("reward_model.ground_truth", " ", "reward_model.ground_truth", "expected text"),
        ("reward_model.ground_truth", 3, "reward_model.ground_truth", "expected text; got 3"),
        ("reward_model.ground_truth", "<answer> </answer>", "reward_model.ground_truth", "tags are empty"),
        ("reward_model.ground_truth", "C", "reward_model.ground_truth", "'C' is not among the options A, B"),
        ("reward_model.ground_truth", "B. pen", "reward_model.ground_truth", "'B. pen' is not among the options"),
        ("extra_info", None, "extra_info.index", "got None"),
        ("extra_info.index", ..., "extra_info.index", "got None"),
        ("extra_info.index", "7", "extra_info.index", "got '7'"),
        ("extra_info.index", True, "extra_info.index", "got True"),
        ("extra_info.index", -1, "extra_info.index", "got -1"),
        ("extra_info.problem_type", ..., "extra_info.problem_type", "got None"),
        (
            "extra_info.problem_type",
            "riddle",
            "extra_info.problem_type",
            "got 'riddle'; set one of multiple choice, numerical",
        ),
        ("extra_info.problem_type", "numerical", "reward_model.ground_truth", "'B' is not a number"),
        ("extra_info.problem_type", ["numerical"], "extra_info.problem_type", "got"),
        ("extra_info.options", ["cup", "pen"], "extra_info.options", "expected a letter of its own each"),
        ("extra_info.options", ["A. cup", "A. pen"], "extra_info.options", "expected a letter of its own each"),
        ("extra_info.options", "A. cup", "extra_info.options", "expected a list"),
        ("extra_info.options", [1, 2], "extra_info.options", "expected a letter of its own each"),
    ],
)
def test_a_faulty_row_is_named(path, value, field, problem):
    with pytest.raises(RecordError, match=f"^train.parquet, record 4: {field}: .*{problem}.*") as caught:
        check_record(changed(path, value), "train.parquet, record 4")
    assert "; " in str(caught.value) and "\n" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("value", [None, "text", 3, []])
def test_a_row_that_is_no_dict(value):
    with pytest.raises(RecordError, match="expected a dict"):
        check_record(value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("videos.0", "/clips/1.mp4"),
        ("videos.0", ["/frames/1.png", "/frames/2.png"]),
        ("videos.0", {"video": "/clips/1.mp4", "nframes": 8, "fps": None, "max_frames": None, "note": "ours"}),
        ("videos.0", {"video": "/clips/1.mp4", "min_pixels": 784, "max_pixels": 50_000}),
        ("videos", np.array([{"video": "/clips/1.mp4"}], dtype=object)),
        ("images", None),
        ("audios", None),
        ("reward_model.ground_truth", "<answer>B</answer>"),
        ("extra_info.options", None),
        ("extra_info.options", np.array(["(A) cup", "(B) pen"], dtype=object)),
        ("extra_info.index", np.int64(3)),
        ("extra_info.note", {"any": "thing"}),
    ],
)
def test_what_is_let_through(path, value):
    check_record(changed(path, value))


@pytest.mark.parametrize(
    ("problem_type", "gold", "extra", "field", "problem"),
    [
        ("temporal grounding", "soon", {}, "reward_model.ground_truth", "'soon' holds no span of times"),
        ("temporal grounding", "[[6, 2]]", {}, "reward_model.ground_truth", r"span \[6, 2\] is reversed"),
        ("temporal grounding", "[[1, 2], [3, 3]]", {}, "reward_model.ground_truth", r"span \[3, 3\] is empty"),
        ("temporal grounding", "[[2, 9]]", {"duration": 7.5}, "reward_model.ground_truth", "behind the clip's 7.5 s"),
        ("temporal grounding", "[[8, 8.2]]", {"duration": 8}, "reward_model.ground_truth", "behind the clip's 8 s"),
        (
            "temporal grounding",
            "[[2, 6]]",
            {"span_unit": "normalised", "duration": 9},
            "reward_model.ground_truth",
            "no span",
        ),
        (
            "temporal grounding",
            "[[0, 1]]",
            {"span_unit": "normalised"},
            "extra_info.duration",
            "set the clip's duration",
        ),
        ("temporal grounding", "[[0, 1]]", {"answer_unit": "frames"}, "extra_info.answer_unit", "got 'frames'"),
        ("temporal grounding", "[[0, 1]]", {"duration": "9"}, "extra_info.duration", "got '9'"),
        ("grounded QA", "[[2, 6]]", {}, "reward_model.ground_truth", "holds no option"),
        ("grounded QA", "B", {}, "reward_model.ground_truth", "holds no span"),
        ("grounded QA", '{"answer": "C", "spans": [[2, 6]]}', {}, "reward_model.ground_truth", "'C' is not among"),
    ],
)
def test_a_faulty_gold_span_is_named(problem_type, gold, extra, field, problem):
    faulty = row(4, problem_type)
    faulty["reward_model"]["ground_truth"] = gold
    faulty["extra_info"] |= extra
    with pytest.raises(RecordError, match=f"^train.parquet, record 4: {field}: .*{problem}") as caught:
        check_record(faulty, "train.parquet, record 4")
    assert "; " in str(caught.value)


def test_a_gold_span_may_end_within_the_second_after_its_clip():
    good = row(4, "temporal grounding")
    good["extra_info"]["duration"] = 5.9
    assert check_record(good).ground_truth == "[[2, 6.5]]"


def test_durations_are_one_column(tmp_path):
    rows = [row(0), row(1, "temporal grounding"), row(2, "temporal grounding")]
    rows[1]["extra_info"]["duration"], rows[2]["extra_info"]["duration"] = 7, 6.5
    path = tmp_path / "train.parquet"
    write_rows(rows, path)
    assert [entry["extra_info"]["duration"] for entry in pq.read_table(path).to_pylist()] == [None, 7.0, 6.5]
    assert check_file(str(path)) == 3


@pytest.mark.parametrize("gold", ["B. pen", "b", "cup", "BC"])
def test_multiple_choice_without_options_wants_a_letter(gold):
    faulty = changed("extra_info.options", None)
    faulty["reward_model"]["ground_truth"] = gold
    with pytest.raises(RecordError, match="is not an option's letter"):
        check_record(faulty)


def test_files_of_urls_and_memory_are_none():
    media = [{"video": "https://host/1.mp4"}, {"video": "file:///clips/2.mp4"}, ["data:image/png;base64,x"]]
    built = row(prompt=[{"role": "user", "content": "<video><video><video>"}], videos=media)
    assert check_record(built).files == ("/clips/2.mp4",)
    built = row(prompt=[{"role": "user", "content": "<image>?"}], videos=[], images=[{"bytes": b"x", "path": None}])
    assert check_record(built).files == ()


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.binary(max_size=4),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=6,
    ),
    st.sampled_from(["prompt", "videos", "images", "reward_model", "extra_info", "data_source"])
    | st.sampled_from(["videos.0", "prompt.0", "extra_info.options", "extra_info.index", "extra_info.problem_type"]),
)
def test_any_value_passes_or_is_a_record_error(value, path):
    try:
        check_record(changed(path, value))
    except RecordError as error:
        assert "record: " in str(error)


def test_to_row_puts_placeholders_in_front():
    built = to_row(
        data_source="demo",
        index=3,
        question="Which?",
        problem_type="free-form",
        ground_truth="<answer>the ball</answer>",
        videos=["/1.mp4"],
        images=["/1.png", {"image": "/2.png", "min_pixels": None}],
        system="Be brief.",
        extra_info={"split": "train"},
    )
    assert built["prompt"][0] == {"role": "system", "content": "Be brief."}
    assert built["prompt"][1] == {"role": "user", "content": "<video><image><image>Which?"}
    assert built["images"] == [{"image": "/1.png"}, {"image": "/2.png"}]
    assert built["reward_model"] == {"style": "rule", "ground_truth": "the ball"}
    assert built["extra_info"] == {"split": "train", "index": 3, "problem_type": "free-form"}


def test_to_row_leaves_placeholders_where_they_are():
    built = to_row(
        data_source="demo",
        index=0,
        question="In <image>, what?",
        problem_type="OCR",
        ground_truth="A",
        images=["/1.png"],
    )
    assert built["prompt"][0]["content"] == "In <image>, what?"


def test_to_row_refuses_what_would_not_train():
    with pytest.raises(RecordError, match="^demo, record 0: reward_model.ground_truth"):
        to_row(data_source="demo", index=0, question="?", problem_type="numerical", ground_truth="many")


def mixed_rows():
    return [
        row(0),
        row(1, "numerical", videos=[], images=[{"image": "/1.png"}], prompt=[{"role": "user", "content": "<image>?"}]),
        row(2, "OCR", videos=[], prompt=[{"role": "user", "content": "Spell it."}]),
        row(3, "free-form", videos=[{"video": "/2.mp4", "fps": 2.0, "max_frames": 16}]),
        row(4, "regression"),
    ]


def test_mixed_rows_survive_parquet(tmp_path):
    path = tmp_path / "made" / "train.parquet"
    rows = mixed_rows()
    rows[1]["extra_info"]["split"] = "train"
    assert write_rows(rows, path) == 5
    assert [file.name for file in path.parent.iterdir()] == ["train.parquet"]
    read = pq.read_table(path).to_pylist()
    for before, after in zip(rows, read, strict=True):
        for column in ("videos", "images"):
            assert [strip_none(media) for media in after[column]] == before[column]
        assert strip_none(after["extra_info"]) == before["extra_info"]
        assert after["prompt"] == before["prompt"]
    assert read[0]["videos"][0]["fps"] is None
    assert check_file(str(path)) == 5


def test_files_of_different_media_have_one_schema(tmp_path):
    first, second, third = (tmp_path / f"{n}.parquet" for n in range(3))
    rows = mixed_rows()
    write_rows(rows[:1], first)
    write_rows(rows[1:2], second)
    write_rows(rows[2:3], third)
    assert pq.read_schema(first) == pq.read_schema(second) == pq.read_schema(third)


def test_write_rows_refuses(tmp_path):
    path = tmp_path / "train.parquet"
    with pytest.raises(DataError, match="no records"):
        write_rows([], path)
    with pytest.raises(RecordError, match="record 1: extra_info.problem_type"):
        write_rows([row(0), row(1, extra_info={"index": 1})], path)
    odd = [row(0), row(1)]
    odd[0]["extra_info"]["note"], odd[1]["extra_info"]["note"] = "text", 3
    with pytest.raises(DataError, match="do not fit into one table"):
        write_rows(odd, path)
    assert list(tmp_path.iterdir()) == []


def test_one_key_for_two_records(tmp_path):
    path = tmp_path / "train.jsonl"
    again, other = row(0), row(0, "numerical")
    path.write_text("\n".join(json.dumps(entry) for entry in (row(0), again)))
    assert check_file(str(path)) == 2
    path.write_text("\n".join(json.dumps(entry) for entry in (row(0), row(1), other)))
    with pytest.raises(RecordError, match=r"record 2: extra_info.index: 0 of demo .*record 0"):
        check_file(str(path))


def test_one_key_across_files(tmp_path):
    seen = {}
    write_rows([row(0)], tmp_path / "a.parquet")
    write_rows([row(0, "OCR")], tmp_path / "b.parquet")
    check_file(str(tmp_path / "a.parquet"), seen)
    with pytest.raises(RecordError, match="b.parquet, record 0: extra_info.index: .*a.parquet, record 0"):
        check_file(str(tmp_path / "b.parquet"), seen)


def test_json_array_and_lines(tmp_path):
    array, lines = tmp_path / "a.json", tmp_path / "b.json"
    array.write_text(json.dumps(mixed_rows(), indent=1))
    lines.write_text("\n".join(map(json.dumps, mixed_rows())) + "\n\n")
    assert check_file(str(array)) == check_file(str(lines)) == 5


def test_missing_media_are_named(tmp_path):
    clip = tmp_path / "clip.mp4"
    clip.touch()
    path = tmp_path / "train.parquet"
    write_rows([row(0, videos=[{"video": str(clip)}]), row(1)], path)
    assert check_file(str(path)) == 2
    with pytest.raises(RecordError, match="record 1: media: no such file: /clips/1.mp4"):
        check_file(str(path), check_media=True)


def test_text_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "train.parquet"
    good = pa.array(["demo"] * 1500)
    buffers = good.buffers()
    data = bytearray(buffers[2].to_pybytes())
    data[4 * 1300] = 0xFF
    bad = pa.StringArray.from_buffers(1500, buffers[1], pa.py_buffer(bytes(data)))
    table = pa.Table.from_pylist([row(n) for n in range(1500)])
    pq.write_table(table.set_column(table.schema.get_field_index("data_source"), "data_source", bad), path)
    with pytest.raises(RecordError, match="record 1300: data_source: is not valid UTF-8"):
        check_file(str(path))
    lines = tmp_path / "train.jsonl"
    lines.write_bytes(b'{"data_source": "\xff"}\n')
    with pytest.raises(DataError, match="train.jsonl: cannot read the file as JSON: .*utf-8") as caught:
        check_file(str(lines))
    assert isinstance(caught.value.__cause__, UnicodeDecodeError)


@pytest.mark.parametrize(("name", "content"), [("a.parquet", b"no parquet"), ("a.jsonl", b"{"), ("a.json", b"[1")])
def test_files_that_cannot_be_read(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: cannot read the file"):
        check_file(str(path))


def test_an_empty_file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.touch()
    with pytest.raises(DataError, match="no records in the file"):
        check_file(str(path))


def test_missing_file_names_a_command():
    assert isinstance(missing_file("/x"), MissingDataError)
    assert "verl-care prepare NAME" in str(missing_file("/data/train.parquet"))
    assert "verl-care prepare video_r1" in str(missing_file("/data/train.parquet", "verl-care prepare video_r1"))
    assert "verl-care demo --assets-only" in str(missing_file("/home/me/.cache/verl_care/demo/train.parquet"))
