"""`verl-care doctor` on this install and on broken ones."""

import importlib.metadata
import json
import os
import subprocess
import sys

import pytest

from verl_care import doctor


def report(**env: str) -> tuple[int, dict[str, dict]]:
    # VERL_PLATFORM: our platform hands its claim on through it, once a test of this process has asked verl for one.
    inherited = {key: value for key, value in os.environ.items() if key != "VERL_PLATFORM"}
    done = subprocess.run(
        [sys.executable, "-m", "verl_care.doctor", "--json"],
        env={**inherited, **env},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout, done.stderr
    return done.returncode, {finding["name"]: finding for finding in json.loads(done.stdout)}


def test_a_sound_install_has_no_failure():
    code, findings = report()
    assert code == 0
    assert not [finding for finding in findings.values() if finding["status"] == "FAIL"]
    assert "pyav" in findings["video reader"]["detail"]
    assert "care_video" in findings["recipes"]["detail"]
    assert "hydra_plugins and verl plugin" in findings["recipes"]["detail"]
    assert findings["trainer.v1.trainer_mode"]["detail"] == "care_colocate_async, care_separate_async, care_sync"


def test_a_plugin_kept_out_is_named_with_the_remedy(tmp_path):
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins" / "__init__.py").touch()
    code, findings = report(VERL_USE_EXTERNAL_PLUGINS="none", PYTHONPATH=str(tmp_path))
    assert code == 1
    assert findings["verl plugin"]["status"] == "FAIL"
    assert findings["verl plugin"]["remedy"] == "unset that variable"
    assert findings["trainer.v1.trainer_mode"]["status"] == "FAIL"
    assert findings["reward.reward_manager.name"]["status"] == "FAIL"
    assert findings["recipes"]["status"] == "FAIL"
    assert findings["video reader"]["status"] == "ok"


def test_a_wrong_version_is_named_with_what_to_install(monkeypatch):
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.8.0" if name == "verl" else version(name))
    found = [finding for finding in doctor.check_versions() if finding.status == doctor.FAIL]
    assert [(finding.detail, finding.remedy) for finding in found] == [("verl 0.8.0", "pip install 'verl==0.9.1'")]


def test_few_cpus_are_a_warning_with_the_number_to_set(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    (finding,) = doctor.check_ray()
    assert finding.status == doctor.WARN
    assert "ray_kwargs.ray_init.num_cpus=6" in finding.remedy


def test_a_check_that_raises_is_a_finding_and_the_others_go_on():
    def check_glass():
        raise OSError("broken")
        yield

    def check_next():
        yield doctor.Finding("next", doctor.OK, "fine")

    findings = doctor.diagnose([check_glass, check_next])
    assert [(finding.name, finding.status) for finding in findings] == [("glass", "FAIL"), ("next", "ok")]
    assert findings[0].detail == "OSError: broken"


def test_the_text_report_puts_the_remedy_under_its_finding():
    lines = doctor.render([doctor.Finding("GPU", doctor.WARN, "none", "buy one")]).splitlines()
    assert [line.split() for line in lines] == [["warn", "GPU", "none"], ["->", "buy", "one"]]


@pytest.mark.parametrize(
    ("missing", "name", "remedy"),
    [("flash_attn", "flash-attn", "attn_implementation=sdpa"), ("vllm", "vLLM", "pip install 'verl-care[vllm]'")],
)
def test_what_a_gpu_lacks_comes_with_the_remedy(monkeypatch, missing, name, remedy):
    class Properties:
        name = "L20"
        total_memory = 48 * 2**30

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: Properties)
    find_spec = doctor.importlib.util.find_spec
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None if name == missing else find_spec(name))
    findings = {finding.name: finding for finding in doctor.check_accelerator()}
    assert findings["GPU"].detail == "8 x L20, 48 GiB"
    assert findings[name].status == doctor.WARN
    assert remedy in findings[name].remedy
