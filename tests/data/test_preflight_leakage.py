"""Before training: records of the training files that a test set has too."""

import pytest
from omegaconf import OmegaConf

from verl_care.data.preflight import Preflight, SupervisedPreflight, check_leakage
from verl_care.data.records import DataError, to_row, write_rows


@pytest.fixture
def folder(tmp_path):
    def write(name, part, video, split):
        info = {"video_id": video, "split": split, "question": "Who?", "media_hash": f"hash of {name} {video}"}
        row = to_row(
            data_source=name,
            index=0,
            question="?",
            problem_type="OCR",
            ground_truth="A",
            videos=["/v"],
            extra_info=info,
        )
        write_rows([row], tmp_path / name / f"{part}.parquet")
        return str(tmp_path / name / f"{part}.parquet")

    return write


def config(train, evaluation, **care):
    return OmegaConf.create({"data": {"train_files": train, "val_files": [evaluation], "care": care}})


def test_overlaps_with_a_test_set_are_printed_or_refused(folder, capsys):
    train, test = (
        folder("video_r1", "train", "a/clip12345.mp4", "train"),
        folder("mvbench", "test", "clip12345", "test"),
    )
    check_leakage(config(train, test))
    assert capsys.readouterr().err.startswith(f"warning: {train} overlaps {test}: 1 training records (1 by video id)")
    with pytest.raises(DataError, match="overlap 1 test sets, and data.care.leakage=strict"):
        check_leakage(config(train, test, leakage="strict"))
    capsys.readouterr()
    for off in ("off", False):
        check_leakage(config(train, test, leakage=off))
    assert capsys.readouterr().err == ""
    with pytest.raises(DataError, match="expected warn, strict or off; got 'loud'"):
        check_leakage(config(train, test, leakage="loud"))


def test_a_test_set_prepared_beside_counts_though_the_run_does_not_read_it(folder, capsys):
    train, dev = folder("video_r1", "train", "clip12345", "train"), folder("video_r1", "dev", "clip12345", "dev")
    folder("mvbench", "test", "clip12345", "test")
    check_leakage(config(train, dev))
    assert "mvbench/test.parquet: 1 training records" in capsys.readouterr().err


def test_a_development_split_and_files_of_other_makers_do_not(folder, tmp_path, capsys):
    train, dev = folder("video_r1", "train", "clip12345", "train"), folder("video_r1", "dev", "clip12345", "dev")
    row = to_row(data_source="own", index=0, question="?", problem_type="OCR", ground_truth="A", videos=["/v"])
    write_rows([row], tmp_path / "own.parquet")
    check_leakage(config([train, str(tmp_path / "own.parquet"), "hdfs://a/b.parquet"], dev))
    check_leakage(config(str(tmp_path / "own.parquet"), str(tmp_path / "own.parquet"), leakage="strict"))
    assert capsys.readouterr().err == ""


def test_both_trainers_look():
    assert check_leakage in Preflight.checks and check_leakage in SupervisedPreflight.checks
