import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from verl_care.data.preflight import check_hook, check_run
from verl_care.data.records import DataError, MissingDataError, RecordError, to_row, write_rows

APP = """
import hydra

@hydra.main(config_path=None, version_base=None)
def main(config):
    print("training")

main()
"""

CALLBACK = "+hydra.callbacks.care._target_=verl_care.data.preflight.Preflight"


@pytest.fixture
def data_file(tmp_path):
    path = tmp_path / "train.parquet"
    row = to_row(data_source="demo", index=0, question="?", problem_type="OCR", ground_truth="A", images=["/none.png"])
    write_rows([row], path)
    return str(path)


def run(files, **data):
    return OmegaConf.create({"data": {"train_files": files, "val_files": None, **data}})


def test_missing_and_faulty_files(tmp_path, data_file):
    with pytest.raises(MissingDataError, match="make it with: verl-care prepare video_r1"):
        check_run(run(["/none.parquet"], care={"make_command": "verl-care prepare video_r1"}))
    with pytest.raises(RecordError, match="record 0: media: no such file: /none.png"):
        check_run(run(data_file))
    check_run(run([data_file, "hdfs://far/away.parquet"], care={"check_media": False}))
    check_run(OmegaConf.create({}))


def test_missing_model_folder(tmp_path, data_file):
    config = run(data_file, care={"check_media": False})
    config.actor_rollout_ref = {"model": {"path": str(tmp_path / "verl_care/demo/model")}}
    with pytest.raises(DataError, match="no such model folder; make it with: verl-care demo --assets-only"):
        check_run(config)
    config.actor_rollout_ref.model.path = "Qwen/Qwen2.5-VL-7B-Instruct"
    check_run(config)


def test_hydra_ends_with_one_line_before_the_job(tmp_path, data_file):
    app = tmp_path / "app.py"
    app.write_text(APP)
    command = [sys.executable, str(app), CALLBACK, "+data.care.check_media=false"]
    bad = subprocess.run([*command, "+data.train_files=/none.parquet"], capture_output=True, text=True, cwd=tmp_path)
    assert bad.returncode == 1
    assert bad.stdout == ""
    assert bad.stderr.splitlines()[-1].startswith("error: /none.parquet: no such data file;")
    assert "Traceback" not in bad.stderr
    assert not (tmp_path / "outputs").exists()
    good = subprocess.run([*command, f"+data.train_files={data_file}"], capture_output=True, text=True, cwd=tmp_path)
    assert (good.returncode, good.stdout.strip()) == (0, "training"), good.stderr


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"trainer": {"v1": {"trainer_mode": "sync"}, "use_v1": True}}, "trainer_mode=care_sync.*found sync"),
        ({"trainer": {"v1": {"trainer_mode": "care_sync"}, "use_v1": False}}, "use_v1=True"),
        ({"care": {"shaping": {"ema_decay": 2}}}, "ema_decay"),
    ],
)
def test_a_manager_without_its_trainer_and_a_bad_care_node_are_refused(changes, named):
    good = {"trainer": {"v1": {"trainer_mode": "care_sync"}, "use_v1": True}, "care": {}}
    good["reward"] = {"reward_manager": {"name": "care"}}
    check_hook(OmegaConf.create(good))
    with pytest.raises(DataError, match=named):
        check_hook(OmegaConf.create({**good, **changes}))


def test_managers_of_verl_train_under_any_trainer():
    check_hook(
        OmegaConf.create({"trainer": {"v1": {"trainer_mode": "sync"}}, "reward": {"reward_manager": {"name": "naive"}}})
    )
