"""The state file beside a checkpoint."""

import json

import pytest

from verl_care.workers import state
from verl_care.workers.state import STATE_FILE, StateError, check_tracker, load_state, save_state

STATE = {"competence": [0.61], "updates": 7}


def test_round_trip_leaves_one_file(tmp_path):
    save_state(tmp_path / "global_step_7", "care", 7, STATE)
    assert load_state(tmp_path / "global_step_7", "care", 7) == STATE
    assert [path.name for path in (tmp_path / "global_step_7").iterdir()] == [STATE_FILE]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (None, "missing"),
        ('{"version": 1, "rule": "care", "glob', "not a whole state file"),
        ("[]", "not a whole state file"),
        (json.dumps({"version": 2, "rule": "care", "global_step": 7, "state": STATE}), "version 2"),
        (json.dumps({"version": 1, "rule": "alp", "global_step": 7, "state": {}}), "rule alp"),
        (json.dumps({"version": 1, "rule": "care", "global_step": 6, "state": STATE}), "step 6"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_remedy(tmp_path, text, named):
    if text is not None:
        (tmp_path / STATE_FILE).write_text(text)
    with pytest.raises(StateError, match=named) as error:
        load_state(tmp_path, "care", 7)
    assert STATE_FILE in str(error.value) and "on_missing_state" in str(error.value)


def test_an_older_state_goes_through_every_version_between(tmp_path, monkeypatch):
    save_state(tmp_path, "care", 7, {"ema": 0.61})
    monkeypatch.setattr(state, "STATE_VERSION", 3)
    steps = {
        1: lambda rule, old: {"competence": old["ema"]},
        2: lambda rule, old: {"competence": [old["competence"]], "updates": 7 if rule == "care" else 0},
    }
    monkeypatch.setattr(state, "MIGRATIONS", steps)
    assert load_state(tmp_path, "care", 7) == STATE
    del steps[2]
    with pytest.raises(StateError, match="version 2; this verl_care reads version 3"):
        load_state(tmp_path, "care", 7)


def test_a_tracker_that_a_crash_left_empty_is_named_with_the_step_to_go_on_from(tmp_path):
    tracker = tmp_path / "latest_checkpointed_iteration.txt"
    check_tracker(tmp_path)
    tracker.write_text("8")
    check_tracker(tmp_path)
    tracker.write_text("")
    with pytest.raises(StateError, match=f"{tracker}.*remove it to begin anew"):
        check_tracker(tmp_path)
    for step in (6, 8, 10):
        (tmp_path / f"global_step_{step}").mkdir()
    # verl writes data.pt last: step 10 is not whole.
    for step in (6, 8):
        (tmp_path / f"global_step_{step}" / "data.pt").touch()
    with pytest.raises(StateError, match=f"{tracker}.*write 8 into it"):
        check_tracker(tmp_path)
