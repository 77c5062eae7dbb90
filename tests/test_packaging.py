"""The built wheel and an editable install: their content, and that Hydra finds the recipes over each channel alone."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("verl_care", "hydra_plugins", "conf", "pyproject.toml", "setup.py", "README.md", "LICENSE")


def run(*command: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    # VERL_PLATFORM: our platform hands its claim on through it, once a test of this process has asked verl for one.
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("PYTHONPATH", "VERL_USE_EXTERNAL_PLUGINS", "VERL_PLATFORM")
    }
    return subprocess.run(
        [str(part) for part in command],
        env={**environment, **env},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=300,
    )


def run_checked(*command: str | Path) -> None:
    done = run(*command)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of what a distribution is made of, so that building leaves nothing in the tree."""
    copy = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run_checked(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source)
    (path,) = out.glob("*.whl")
    return path


def make_environment(folder: Path, *to_install: str | Path) -> Path:
    """A virtual environment with our package alone, which sees this environment's packages behind its own."""
    run_checked(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    (site_packages,) = folder.glob("lib/python*/site-packages")
    # A plain path: the .pth files of this environment, and so an editable install in it, stay without effect.
    paths = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site_packages / "behind.pth").write_text("\n".join(paths))
    run_checked(
        sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-build-isolation",
        "--force-reinstall", "--no-index", *to_install,
    )  # fmt: skip
    return python


@pytest.fixture(scope="module")
def wheel_python(wheel, tmp_path_factory) -> Path:
    return make_environment(tmp_path_factory.mktemp("wheel"), wheel)


@pytest.fixture(scope="module")
def editable_python(source, tmp_path_factory) -> Path:
    return make_environment(tmp_path_factory.mktemp("editable"), "--editable", source)


@pytest.fixture(params=["wheel", "editable"])
def python(request) -> Path:
    return request.getfixturevalue(f"{request.param}_python")


@pytest.fixture(scope="module")
def foreign_plugins(tmp_path_factory) -> str:
    """A folder with another distribution's regular package `hydra_plugins`, which hides the namespace package."""
    folder = tmp_path_factory.mktemp("foreign")
    (folder / "hydra_plugins").mkdir()
    (folder / "hydra_plugins" / "__init__.py").touch()
    return str(folder)


def main_ppo(python: Path, *overrides: str, **env: str) -> subprocess.CompletedProcess[str]:
    return run(python, "-m", "verl.trainer.main_ppo", *overrides, "--cfg", "job", **env)


def test_wheel_holds_code_and_configs_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.partition("/")[0] for name in names} == {
        "verl_care",
        "hydra_plugins",
        f"{wheel.name.removesuffix('-py3-none-any.whl')}.dist-info",
    }
    assert "hydra_plugins/__init__.py" not in names
    for folder, inside in (("conf", "verl_care/conf"), ("verl_care", "verl_care"), ("hydra_plugins", "hydra_plugins")):
        sources = {
            f"{inside}/{path.relative_to(ROOT / folder)}"
            for pattern in ("*.py", "*.yaml", "*.j2", "py.typed")
            for path in (ROOT / folder).rglob(pattern)
        }
        assert sources and sources <= names


def test_both_channels_together_add_one_entry(python):
    done = run(python, "-m", "verl.trainer.main_ppo", "+recipe=care_video", "--info", "searchpath")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pkg://verl_care.conf") == 1


def test_the_namespace_plugin_alone_finds_the_recipe(python):
    done = main_ppo(python, "+recipe=care_video", "-p", "care.scoring", VERL_USE_EXTERNAL_PLUGINS="none")
    assert (done.returncode, done.stdout.split()[-1:]) == (0, ["strict"]), done.stderr


def test_the_verl_plugin_alone_finds_the_recipe(python, foreign_plugins):
    done = main_ppo(python, "+recipe=care_video", "-p", "care.scoring", PYTHONPATH=foreign_plugins)
    assert (done.returncode, done.stdout.split()[-1:]) == (0, ["strict"]), done.stderr


@pytest.fixture
def without_plugin(foreign_plugins) -> dict[str, str]:
    return {"VERL_USE_EXTERNAL_PLUGINS": "none", "PYTHONPATH": foreign_plugins}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+recipe@_global_=care_video"], "config group 'recipe' does not exist"),
        (["+recipe=care_video", "care=base"], "Key 'care' is not in struct"),
    ],
)
def test_the_guards_fail_where_the_plugin_is_missing(overrides, message, wheel_python, without_plugin):
    done = main_ppo(wheel_python, *overrides, "actor_rollout_ref.rollout.name=vllm", **without_plugin)
    assert done.returncode != 0
    assert message in done.stderr


def test_hydra_still_takes_an_unknown_recipe_for_a_plain_key(wheel_python, without_plugin):
    # Why the guards exist. Once this fails, `+recipe=care_video` is safe by itself and the guards can go.
    done = main_ppo(wheel_python, "+recipe=care_video", "-p", "recipe", **without_plugin)
    assert (done.returncode, done.stdout.split()[-1:]) == (0, ["care_video"]), done.stderr


def test_console_script_runs_from_the_wheel(wheel_python):
    done = run(wheel_python.parent / "verl-care", "--version")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("verl-care 0.")
