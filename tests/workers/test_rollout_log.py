"""The per-rollout log on disk."""

import pyarrow.parquet as pq
import pytest

from verl_care.workers.rollout_log import FOLDER, SCHEMA, RolloutLog, log_files, read_log


def _columns(*uids, response="text"):
    return {"uid": list(uids), "session": [0] * len(uids), "response": [response] * len(uids), "acc": [0.5] * len(uids)}


def test_updates_come_back_in_order_with_every_column(tmp_path):
    log = RolloutLog(tmp_path, max_bytes=10**9)
    for step in (1, 2, 10):
        log.write(step, 0, _columns(f"a{step}", f"b{step}"))
    log.write(2, 1, _columns("c2"))
    tables = list(read_log(tmp_path))
    assert [(table["step"][0].as_py(), table["update"][0].as_py()) for table in tables] == [
        (1, 0),
        (2, 0),
        (2, 1),
        (10, 0),
    ]
    assert tables[0].schema == SCHEMA
    assert tables[0]["uid"].to_pylist() == ["a1", "b1"] and tables[0]["bonus"].to_pylist() == [None, None]


def test_steps_after_the_checkpoint_are_removed_on_resume(tmp_path):
    log = RolloutLog(tmp_path, max_bytes=10**9)
    for step in (2, 3, 4, 12):
        log.write(step, 0, _columns(f"a{step}"))
        log.write(step, 1, _columns(f"b{step}"))
    resumed = RolloutLog(tmp_path, max_bytes=10**9)
    assert resumed.remove_after(3) == 4
    resumed.write(4, 0, _columns("new"))
    assert [table["uid"].to_pylist() for table in read_log(tmp_path)] == [["a2"], ["b2"], ["a3"], ["b3"], ["new"]]


def test_a_half_written_file_is_not_read(tmp_path):
    log = RolloutLog(tmp_path, max_bytes=10**9)
    whole = log.write(1, 0, _columns("a"))
    (tmp_path / FOLDER / "2.partial99").write_bytes(whole.read_bytes()[:100])
    assert log_files(tmp_path) == [whole]


def test_texts_stop_at_the_size_limit(tmp_path):
    log = RolloutLog(tmp_path, max_bytes=1)
    assert log.keeps_text
    path = log.write(1, 0, _columns("a"))
    assert not log.keeps_text and not RolloutLog(tmp_path, max_bytes=path.stat().st_size).keeps_text
    assert RolloutLog(tmp_path, max_bytes=path.stat().st_size + 1).keeps_text
    assert pq.read_table(path)["acc"].to_pylist() == [0.5]


def test_a_bounded_log_keeps_the_latest_whole_steps_with_their_texts(tmp_path):
    size = RolloutLog(tmp_path / "one", max_bytes=10**9).write(1, 0, _columns("a")).stat().st_size
    log = RolloutLog(tmp_path, max_bytes=5 * size + size // 2, when_full="remove_oldest")
    for step in range(1, 8):
        for update in (0, 1):
            log.write(step, update, _columns("a"))
            assert sum(path.stat().st_size for path in log_files(tmp_path)) <= log.max_bytes
    assert [path.stem for path in log_files(tmp_path)] == ["6", "6_1", "7", "7_1"]
    assert all(table["response"].to_pylist() == ["text"] for table in read_log(tmp_path))


def test_a_bounded_log_counts_what_an_earlier_run_left(tmp_path):
    whole = RolloutLog(tmp_path, max_bytes=10**9)
    for step in range(1, 11):
        size = whole.write(step, 0, _columns("a")).stat().st_size
    resumed = RolloutLog(tmp_path, max_bytes=4 * size, when_full="remove_oldest")
    assert resumed.remove_after(8) == 2
    resumed.write(9, 0, _columns("a"))
    assert [path.stem for path in log_files(tmp_path)] == ["6", "7", "8", "9"]


def test_a_bounded_log_never_removes_the_step_it_writes(tmp_path):
    log = RolloutLog(tmp_path, max_bytes=1, when_full="remove_oldest")
    for step, update in ((1, 0), (2, 0), (2, 1)):
        log.write(step, update, _columns("a"))
    assert [path.stem for path in log_files(tmp_path)] == ["2", "2_1"]


def test_a_bounded_log_does_not_mind_files_that_someone_removed(tmp_path):
    log = RolloutLog(tmp_path, max_bytes=1, when_full="remove_oldest")
    log.write(1, 0, _columns("a")).unlink()
    log.write(2, 0, _columns("a"))
    assert [path.stem for path in log_files(tmp_path)] == ["2"]


def test_a_folder_without_a_log_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=FOLDER):
        log_files(tmp_path)
