import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verl_care.data.records import DataError, RecordError
from verl_care.data.supervised import check_supervised, check_supervised_file

RESPONSE = "<think>It rolls.</think>\n<answer>B</answer>"


def row(content=RESPONSE, **changes):
    sound = {
        "data_source": "video_r1_cot",
        "messages": [{"role": "user", "content": "<video>What?"}, {"role": "assistant", "content": content}],
        "videos": [{"video": "/clips/0.mp4", "fps": None}],
        "images": [],
        "extra_info": {"index": 7, "problem_type": "multiple choice", "options": ["A. cup", "B. pen"]},
    }
    return {**sound, **changes}


def test_a_record_is_checked_like_one_for_reinforcement_learning():
    record = check_supervised(row())
    assert (record.ground_truth, record.prompt_key, record.files) == ("B", "video_r1_cot/7", ("/clips/0.mp4",))


@pytest.mark.parametrize(
    ("faulty", "named"),
    [
        (row("<think>It rolls.</think>"), "messages[1].content: has no answer in tags"),
        (row("<answer>C</answer>"), "'C' is not among the options A, B"),
        (row(messages=[{"role": "assistant", "content": RESPONSE}]), "messages: expected a question and a response"),
        (row(messages=[{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]), "ends with role 'user'"),
        (row(messages=None), "messages: expected"),
        (row(videos=[]), "videos: 0 given, but the prompt has 1 <video>"),
        (row(extra_info={"problem_type": "OCR"}), "extra_info.index"),
    ],
)
def test_a_faulty_record_is_named(faulty, named):
    with pytest.raises(RecordError) as error:
        check_supervised(faulty, "cot.parquet, record 3")
    assert str(error.value).startswith("cot.parquet, record 3: ") and named in str(error.value)


def test_a_file_is_checked_to_its_last_record(tmp_path):
    path = tmp_path / "cot.parquet"
    clip = tmp_path / "0.mp4"
    rows = [row(videos=[{"video": str(clip)}]) for _ in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert check_supervised_file(str(path)) == 3
    with pytest.raises(RecordError, match="record 0: media: no such file: .*0.mp4"):
        check_supervised_file(str(path), check_media=True)
    clip.touch()
    assert check_supervised_file(str(path), check_media=True) == 3
    pq.write_table(pa.Table.from_pylist([*rows, row("none")]), path)
    with pytest.raises(RecordError, match="record 3"):
        check_supervised_file(str(path))


def test_what_would_be_fetched_is_refused(tmp_path):
    path = tmp_path / "cot.parquet"
    pq.write_table(pa.Table.from_pylist([row(videos=[{"video": "http://example.org/0.mp4"}])]), path)
    with pytest.raises(RecordError, match="record 0: media: http://example.org/0.mp4 is not on this machine"):
        check_supervised_file(str(path), check_media=True)
    assert check_supervised_file(str(path)) == 1


def test_no_parquet_and_no_records_are_errors(tmp_path):
    path = tmp_path / "cot.parquet"
    path.write_text(json.dumps(row()))
    with pytest.raises(DataError, match="cannot read the file as Parquet"):
        check_supervised_file(str(path))
    pq.write_table(pa.Table.from_pylist([row()]).slice(0, 0), path)
    with pytest.raises(DataError, match="no records in the file"):
        check_supervised_file(str(path))
