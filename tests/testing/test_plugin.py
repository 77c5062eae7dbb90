"""The pytest plugin as a user meets it: the page's example, its cost when unused, and what it leaves behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"


def code_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)


def processes_with(mark: str) -> list[str]:
    """Command lines of the processes whose environment holds the mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue  # ended meanwhile, or of another user
    return found


def run_pytest(folder: Path, *arguments: str, mark: str = "", **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env={**os.environ, "VERL_CARE_TEST_MARK": mark, "PYTHONPATH": str(folder), **environment},
        capture_output=True,
        text=True,
    )


def test_the_example_is_fifteen_lines():
    test = [line for line in code_blocks()[1].splitlines() if line.strip()]
    assert len(test) <= 15


@pytest.mark.timeout(180)
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for left processes in /proc")
def test_the_pages_example_passes_and_leaves_no_process(tmp_path):
    manager, test = code_blocks()
    (tmp_path / "my_manager.py").write_text(manager)
    (tmp_path / "test_my_manager.py").write_text(test)
    mark = uuid.uuid4().hex
    result = run_pytest(tmp_path, mark=mark)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 passed" in result.stdout
    assert processes_with(mark) == []


def test_importing_the_plugin_loads_nothing_heavy():
    code = (
        "import sys, verl_care.testing, verl_care.testing.plugin;"
        "print(sorted({'torch', 'ray', 'verl', 'transfer_queue', 'hydra'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_ray_does_not_start_for_tests_that_do_not_ask(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import sys\n\n\n"
        "def test_it():\n"
        "    assert not {'torch', 'ray', 'verl', 'transfer_queue'} & sys.modules.keys()\n"
    )
    result = run_pytest(tmp_path, "-p", "verl_care.testing.plugin")
    assert result.returncode == 0, result.stdout + result.stderr


def test_tests_on_transfer_queue_get_a_time_limit(tmp_path):
    (tmp_path / "conftest.py").write_text(
        'pytest_plugins = ["verl_care.testing.plugin"]\n\n\n'
        "def pytest_collection_finish(session):\n"
        "    for item in session.items:\n"
        "        marker = item.get_closest_marker('timeout')\n"
        "        print('limit', item.name, marker and marker.args)\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nverl_care_timeout = 7\n")
    (tmp_path / "test_it.py").write_text(
        "import pytest\n\n\n"
        "def test_queue(partition):\n    pass\n\n\n"
        "@pytest.mark.timeout(3)\ndef test_own(partition):\n    pass\n\n\n"
        "def test_plain():\n    pass\n"
    )
    result = run_pytest(tmp_path, "-s", "--collect-only")
    limits = dict(re.findall(r"limit (\w+) (.*)", result.stdout))
    assert limits == {"test_queue": "(7.0,)", "test_own": "(3,)", "test_plain": "None"}, result.stdout


def test_without_pytest_timeout_the_plugin_says_what_to_install(tmp_path):
    (tmp_path / "test_it.py").write_text("def test_it(partition):\n    pass\n")
    result = run_pytest(tmp_path, "-p", "verl_care.testing.plugin", "-p", "no:timeout")
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert "pip install pytest-timeout" in result.stderr


def test_unknown_names_are_refused():
    import verl_care.testing

    with pytest.raises(AttributeError, match="no attribute 'MockGroup'"):
        _ = verl_care.testing.MockGroup
