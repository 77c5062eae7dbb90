"""`verl-care prepare`: exit status, one-line errors, where files go."""

import json
import os
import signal
import subprocess
import sys

from typer.testing import CliRunner

from verl_care.cli import app
from verl_care.data.prepare.table import PREPARERS


def call(*arguments, **env):
    return CliRunner().invoke(app, ["prepare", *map(str, arguments)], env=env)


def test_list_names_every_data_set_and_option():
    listed = call("--list")
    assert listed.exit_code == 0
    for name, preparer in PREPARERS.items():
        assert f"{name} ({preparer.kind})" in listed.output
    rows = json.loads(call("--list", "--json").output)
    assert {row["name"]: row["options"].get("split") for row in rows}["nextgqa"] == ["all", "test", "val", "train"]


def test_wrong_calls_are_2_and_faults_are_1(world, video_r1_record):
    path = world.json("Video-R1-260k.json", [video_r1_record(), video_r1_record(1)])
    assert call().exit_code == 2
    assert call("video_r1", "--source", "/none").exit_code == 2
    assert call("video_r1", "--source", path, "--dev", 1, "--dev-fraction", 0.5).exit_code == 2
    assert call("video_r1", "--source", path, "--set", "split").exit_code == 2
    unknown = call("video_r2", "--source", path)
    assert unknown.exit_code == 1
    assert unknown.stderr.strip() == "error: video_r2: no such data set; `verl-care prepare --list` names them"
    missing = call("video_r1", "--source", path, "--out", world.out / "x")
    assert missing.exit_code == 1
    assert "2 records: missing" in missing.stderr.splitlines()
    assert missing.stderr.strip().splitlines()[-1].startswith("error: video_r1: 0 faulty records and 2 with clips")


def test_files_go_where_the_recipes_look(world, video_r1_record):
    for number in range(2):
        world.own_clip(f"CLEVRER/train/video_{number}.mp4", level=number)
    path = world.json("Video-R1-260k.json", [video_r1_record(), video_r1_record(1)])
    done = call(
        *("video_r1", "--source", path, "--videos", world.videos, "--dev", 1, "--json"),
        VERL_CARE_DATA_DIR=str(world.out),
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["splits"]["train"]["counts"]["dev"] == 1
    assert {entry.name for entry in (world.out / "video_r1").iterdir()} == {
        *("train.parquet", "dev.parquet", "manifest.json", "probes.jsonl")
    }


def test_a_run_that_is_killed_goes_on_where_it_was(world, video_r1_record):
    for number in range(12):
        world.own_clip(f"CLEVRER/train/video_{number}.mp4", frames=20, level=number)
    path = world.json("Video-R1-260k.json", [video_r1_record(number) for number in range(12)])
    code = f"""
import os, signal
from verl_care.data import probe
real = probe.probe_file
looked = []
def look(path):
    looked.append(path)
    if len(looked) == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(path)
probe.probe_file = look
from verl_care.cli import app
app(["prepare", "video_r1", "--source", {str(path)!r}, "--videos", {str(world.videos)!r}, "--out",
     {str(world.out / "video_r1")!r}, "--workers", "1", "--dev", "0"])
"""
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = world.out / "video_r1"
    assert [entry.name for entry in folder.iterdir()] == ["probes.jsonl"]
    kept = (folder / "probes.jsonl").read_text().splitlines()
    assert len(kept) >= 5
    world.prepare("video_r1", dev=0)
    assert len(world.rows("video_r1", "train")) == 12
    after = (folder / "probes.jsonl").read_text().splitlines()
    assert after[: len(kept)] == kept and len(after) == 12
    assert not os.path.exists(folder / "train.quarantine.jsonl")
