"""What ends a process that runs main_ppo ends the run too, with everything it started."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from verl_care import launch

pytestmark = pytest.mark.timeout(60)

# In the working folder of the run, so before verl's own: starts a process that leads a session, as Ray's do, and waits.
MAIN_PPO = """
import os, pathlib, subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
pathlib.Path("partial").write_text(os.environ["RAY_TMPDIR"])
os.rename("partial", "ready")
import time; time.sleep(600)
"""
# Signals as a terminal gives them, whatever the tests run under.
RUNNER = """
import pathlib, signal, sys
from verl_care import launch
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
cwd = pathlib.Path(sys.argv[1])
with launch.main_ppo([], log=cwd / "log", cwd=cwd) as process:
    launch.wait(process, lambda: None)
"""


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 128 + 15), (signal.SIGHUP, 128 + 1)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_signal_leaves_nothing_running(number, status, tmp_path):
    package = tmp_path / "verl" / "trainer"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "main_ppo.py").write_text(MAIN_PPO)
    runner = subprocess.Popen([sys.executable, "-c", RUNNER, str(tmp_path)])
    try:
        while not (tmp_path / "ready").exists():
            assert runner.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        marker = "RAY_TMPDIR=" + (tmp_path / "ready").read_text()
        assert len(launch.processes_with(marker)) == 2
        runner.send_signal(number)
        assert runner.wait() == status
        assert launch.processes_with(marker) == []
    finally:
        runner.kill()
        runner.wait()
        if (tmp_path / "ready").exists():
            for pid in launch.processes_with("RAY_TMPDIR=" + (tmp_path / "ready").read_text()):
                subprocess.run(["kill", "-9", str(pid)], check=False)
