"""A checkpoint of verl becomes a folder that transformers reads."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from verl_care.evaluation import checkpoints
from verl_care.evaluation.checkpoints import find_model
from verl_care.evaluation.recorded import EvaluationError


@pytest.fixture(scope="module")
def run_folder(taught, tmp_path_factory):
    """A run's folder with two checkpoints, as verl's FSDP engine saves one rank of one."""
    from transformers import AutoModelForImageTextToText

    folder = tmp_path_factory.mktemp("run")
    model = AutoModelForImageTextToText.from_pretrained(taught.model, dtype=torch.float32)
    for step in (2, 10):
        actor = folder / f"global_step_{step}" / "actor"
        (actor / "huggingface").mkdir(parents=True)
        for path in taught.model.iterdir():
            if path.suffix != ".safetensors":
                shutil.copy(path, actor / "huggingface")
        torch.save(model.state_dict(), actor / "model_world_size_1_rank_0.pt")
        (actor / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": 1}))
    return folder


def test_a_hugging_face_folder_and_a_name_are_left_as_they_are(taught):
    assert find_model(str(taught.model)) == str(taught.model)
    assert find_model("Qwen/Qwen2.5-VL-7B-Instruct") == "Qwen/Qwen2.5-VL-7B-Instruct"


@pytest.mark.timeout(240)
def test_the_latest_checkpoint_of_a_run_is_merged_once(run_folder, taught):
    from transformers import AutoModelForImageTextToText

    merged = find_model(str(run_folder))
    assert merged == str(run_folder / "global_step_10" / "actor" / "merged_hf")
    found = AutoModelForImageTextToText.from_pretrained(merged, dtype=torch.float32).state_dict()
    wanted = AutoModelForImageTextToText.from_pretrained(taught.model, dtype=torch.float32).state_dict()
    assert set(found) == set(wanted)
    # verl's merger writes bfloat16.
    assert all(torch.equal(found[name], wanted[name].bfloat16().float()) for name in wanted)
    (run_folder / "global_step_10" / "actor" / "model_world_size_1_rank_0.pt").unlink()
    for path in (run_folder, run_folder / "global_step_10", run_folder / "global_step_10" / "actor"):
        assert find_model(str(path)) == merged
    assert not list((run_folder / "global_step_10" / "actor").glob(".merged*"))


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(EvaluationError, match="neither a Hugging Face model .* nor a checkpoint of verl"):
        find_model(str(tmp_path))


def test_a_merger_that_fails_is_an_error_that_says_why_and_leaves_nothing(run_folder, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'ValueError: World size not found in the config file.' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(checkpoints.sys, "executable", str(python))
    actor = run_folder / "global_step_2" / "actor"
    before = sorted(actor.iterdir())
    with pytest.raises(
        EvaluationError, match="global_step_2/actor: verl's model_merger failed: .*World size not found"
    ):
        find_model(str(actor))
    assert sorted(actor.iterdir()) == before
