"""What a fresh process loads: pure modules leave verl and ray alone, and the plugin adds next to nothing."""

import json
import os
import pkgutil
import subprocess
import sys

import pytest

import verl_care


def modules_after(statement: str, **env: str) -> set[str]:
    """Names in `sys.modules` of a fresh interpreter after a statement."""
    code = f"{statement}\nimport json, sys\nprint('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def tops(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


def all_modules(package: str) -> list[str]:
    folder = os.path.join(verl_care.__path__[0], *package.split(".")[1:])
    return [package, *(info.name for info in pkgutil.walk_packages([folder], f"{package}."))]


@pytest.mark.parametrize(
    "package", ["verl_care.shaping", "verl_care.rewards", "verl_care.report", "verl_care.evaluation"]
)
def test_pure_packages_leave_verl_and_ray_out(package):
    loaded = modules_after("\n".join(f"import {name}" for name in all_modules(package)))
    assert package in loaded
    assert not tops(loaded) & {"verl", "ray", "hydra", "transformers"}


@pytest.mark.parametrize("module", ["verl_care", "verl_care.config", "verl_care.searchpath", "verl_care.cli"])
def test_config_and_command_line_leave_torch_out_too(module):
    loaded = modules_after(f"import {module}")
    assert not tops(loaded) & {"verl", "ray", "hydra", "transformers", "torch", "numpy"}


def test_import_of_verl_gains_only_the_held_list():
    without = modules_after("import verl", VERL_USE_EXTERNAL_PLUGINS="none")
    with_plugin = modules_after("import verl", VERL_USE_EXTERNAL_PLUGINS="verl_care")
    gained = with_plugin - without
    ours = {name for name in gained if name.startswith("verl_care")}
    assert ours == {
        "verl_care",
        "verl_care.plugin",
        "verl_care.searchpath",
        "verl_care.workers",
        "verl_care.workers.cpu",
        "verl_care.workers.cpu.platform",
    }
    assert tops(gained - ours) <= {"wrapt"}


ALONE = """
import importlib, json, os, pkgutil, sys
import verl.utils.dataset.rl_dataset, verl.workers.engine_workers
from verl_care import plugin, workers

# Importing these fires the plugin's hooks: each child does it for itself. What they need is here once for all.
assert not {*plugin._ADAPTERS, "verl.workers.engine.fsdp.transformer_impl"} & set(sys.modules)
failed = {}
for info in pkgutil.walk_packages(workers.__path__, "verl_care.workers."):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            importlib.import_module(info.name)
        except Exception as error:
            os.write(writer, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as said:
        if message := said.read():
            failed[info.name] = message
    os.waitpid(child, 0)
print("\\n" + json.dumps(failed))
"""


def test_every_adapter_can_be_imported_first():
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    failed = json.loads(done.stdout.splitlines()[-1])
    assert {name: error for name, error in failed.items() if "No module named 'vllm'" not in error} == {}
