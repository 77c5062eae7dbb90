"""The command line: exit statuses, help with an example, and what `demo` hands on."""

from importlib.metadata import version

import pytest
import typer
from typer.testing import CliRunner

import verl_care.demo
from verl_care.cli import app

COMMANDS = sorted(typer.main.get_command(app).commands)


def invoke(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_version():
    result = invoke("--version")
    assert (result.exit_code, result.stdout.strip()) == (0, f"verl-care {version('verl-care')}")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command):
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert f"Example: verl-care {command}" in result.stdout


@pytest.mark.parametrize("arguments", [["nonsense"], ["doctor", "--loud"], ["demo", "--steps", "0"]])
def test_a_wrong_call_exits_with_2(arguments):
    assert invoke(*arguments).exit_code == 2


@pytest.mark.parametrize("status", [0, 1])
def test_demo_hands_its_options_on_and_exits_with_the_result(monkeypatch, tmp_path, status):
    seen = {}

    def run_demo(**options):
        seen.update(options)
        return status

    monkeypatch.setattr(verl_care.demo, "run_demo", run_demo)
    result = invoke(
        "demo", "--steps", "3", "--engine", "vllm", "--manager", "naive", "--video-dir", str(tmp_path), "--seed", "7",
        "--", "data.seed=1",
    )  # fmt: skip
    assert result.exit_code == status
    assert seen == {
        "steps": 3,
        "engine": "vllm",
        "manager": "naive",
        "video_dir": tmp_path,
        "out_dir": None,
        "seed": 7,
        "assets_only": False,
        "overrides": ["data.seed=1"],
    }
