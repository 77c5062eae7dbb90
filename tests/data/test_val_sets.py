import json

import pytest

from verl_care.data.val_sets import (
    READINGS_FILE,
    check_test_steps,
    command_for,
    is_test_row,
    is_test_step,
    record_reading,
)


@pytest.mark.parametrize(
    ("info", "is_test"),
    [
        ({"split": "test"}, True),
        # LongVideoBench's published questions
        ({"split": "validation"}, True),
        ({"split": "dev"}, False),
        ({"split": "train"}, False),
        ({"split": "val"}, False),
        ({"split": None}, False),
        ({"index": 3}, False),
        (None, False),
    ],
)
def test_the_split_says_what_a_row_is_for(info, is_test):
    assert is_test_row(info) is is_test


def test_a_file_is_made_by_the_command_of_its_name():
    care = {
        "val_sets": {"video_r1": "/d/video_r1/dev.parquet", "mvbench": "/d/mvbench/test.parquet", "mine": "/d/x"},
        "make_commands": {"mvbench": "verl-care prepare mvbench"},
        "make_command": "verl-care prepare video_r1",
    }
    assert command_for(care, "/d/mvbench/test.parquet") == "verl-care prepare mvbench"
    assert command_for(care, "/d/video_r1/dev.parquet") == "verl-care prepare video_r1"
    assert command_for(care, "/d/video_r1/train.parquet") == "verl-care prepare video_r1"
    assert command_for({"val_sets": {"mine": "/d/x"}}, "/d/x") is None
    assert command_for(None, "/d/x") is None


@pytest.mark.parametrize(
    ("steps", "step", "read"),
    [
        (["last"], 100, True),
        (["last"], 99, False),
        (["last"], 0, False),
        ([0, 50], 0, True),
        ([0, 50], 50, True),
        ([0, 50], 100, False),
        ([], 100, False),
    ],
)
def test_test_sets_are_read_at_the_named_steps_alone(steps, step, read):
    assert is_test_step(steps, step, last_step=100) is read


def test_the_only_validation_of_a_run_is_its_last():
    assert is_test_step(["last"], 40, last_step=100, val_only=True)
    assert not is_test_step([60], 40, last_step=100, val_only=True)


SOUND = {"test_freq": 20, "last_step": 110, "val_before_train": True}


@pytest.mark.parametrize("steps", [["last"], [0, 20, 100, "last"], [110], []])
def test_steps_at_which_verl_validates(steps):
    check_test_steps(steps, **SOUND)


@pytest.mark.parametrize(
    ("steps", "changed", "named"),
    [
        ([30], {}, "30: is neither a multiple of trainer.test_freq=20 nor the last step"),
        ([120], {}, "120: the run ends at step 110"),
        ([0], {"val_before_train": False}, "set trainer.val_before_train=true"),
        (["last"], {"test_freq": -1}, r"trainer.test_freq=-1; set it .* care.test_sets_at_steps=\[\]"),
        ([20], {"test_freq": -1, "last_step": None}, "trainer.test_freq=-1"),
    ],
)
def test_a_step_without_a_validation_is_an_error(steps, changed, named):
    with pytest.raises(ValueError, match=f"care.test_sets_at_steps: {named}" if named[0].isdigit() else named):
        check_test_steps(steps, **{**SOUND, **changed})


def test_what_only_the_trainer_can_tell_is_left_to_it():
    check_test_steps([30], **{**SOUND, "last_step": None})
    check_test_steps([30], **SOUND, val_only=True)


def test_readings_are_counted_over_resumes(tmp_path):
    folder = tmp_path / "run"
    assert record_reading(folder, 50) == 1
    assert record_reading(folder, 50) == 1
    assert record_reading(folder, 100) == 2
    assert json.loads((folder / READINGS_FILE).read_text()) == {"steps": [50, 100]}
