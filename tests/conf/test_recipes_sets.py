"""Training sets, test sets as validation sets, and the supervised start: what each recipe resolves to."""

from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf
from verl.utils.config import omega_conf_to_dataclass

import verl_care.conf
from verl_care.data.preflight import Preflight, SupervisedPreflight
from verl_care.data.prepare.table import PREPARERS
from verl_care.data.records import to_row, write_rows

CONF = Path(verl_care.conf.__path__[0])
VAL_RECIPES = sorted(path.stem for path in (CONF / "recipe").glob("val_*.yaml"))

# Recipe -> name of its data set, as `verl-care prepare` knows it.
TRAINING_SETS = {
    "care_video": "video_r1",
    "t_grpo": "video_r1",
    "care_video_holmes": "video_holmes_mix",
    "care_cgbench": "cgbench",
    "video_rts": "cgbench",
    "temporal_rlt": "temporal_rlt",
    "care_temporal_rlt": "temporal_rlt",
    "care_nextgqa": "nextgqa",
}

VIDEO_R1_TRAINING = {"fps": 2.0, "min_frames": 4, "max_frames": 16, "min_pixels": 100352, "max_pixels": 105369}
# README of tulerfeng/Video-R1: 256 * 28 * 28 pixels, 16, 32 or 64 frames
VIDEO_R1_TEST = {"fps": 2.0, "min_frames": 4, "max_frames": 16, "min_pixels": 100352, "max_pixels": 200704}
# appletea233/Temporal-R1, examples/run_qwen2_5_vl_3b_tvg.sh
TEMPORAL_RLT = {"fps": 2.0, "total_pixels": 1605632, "min_pixels": 3136}

SFT_START, RL_START = "Qwen/Qwen2.5-VL-7B-Instruct", "Video-R1/Qwen2.5-VL-7B-COT-SFT"


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("VERL_CARE_DATA_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def write_set(data_dir):
    def write_set(name, part, split, problem_type="multiple choice", **info):
        rows = [
            to_row(
                data_source=name,
                index=index,
                question="What is it?",
                problem_type=problem_type,
                ground_truth="A",
                options=["A. cup", "B. pen"],
                extra_info={"split": split, **info},
            )
            for index in range(2)
        ]
        write_rows(rows, data_dir / name / f"{part}.parquet")

    return write_set


CARE_ON = {
    "care_video_holmes": {
        "data.care.video": VIDEO_R1_TRAINING,
        "data.train_batch_size": 8,
        "actor_rollout_ref.model.path": RL_START,
        "actor_rollout_ref.actor.optim.lr": 1e-6,
        "actor_rollout_ref.actor.kl_loss_coef": 0.04,
        "care.scoring": "strict",
    },
    "care_cgbench": {
        "data.care.video": {"nframes": 32, "min_pixels": 3136, "max_pixels": 89600},
        "data.max_response_length": 1024,
        "actor_rollout_ref.model.path": RL_START,
        "care.scoring": "strict",
    },
    "care_temporal_rlt": {
        "data.care.video": TEMPORAL_RLT,
        "data.train_batch_size": 16,
        "actor_rollout_ref.model.path": "Qwen/Qwen2.5-VL-3B-Instruct",
        "reward.custom_reward_function.reward_kwargs.span_reward": "iou",
    },
    "care_nextgqa": {"data.care.video": VIDEO_R1_TRAINING, "actor_rollout_ref.model.path": RL_START},
}


@pytest.mark.parametrize("recipe", CARE_ON)
def test_care_on_each_training_set(recipe, compose_job):
    config = compose_job(f"+recipe={recipe}")
    found = {key: OmegaConf.select(config, key, throw_on_missing=True) for key in CARE_ON[recipe]}
    assert found == CARE_ON[recipe]
    assert config.reward.reward_manager.name == "care"
    assert config.trainer.v1.trainer_mode == "care_sync"
    assert config.trainer.experiment_name == recipe


@pytest.mark.parametrize("recipe", TRAINING_SETS)
def test_a_training_set_is_looked_for_where_its_preparer_writes_it(recipe, compose_job, data_dir, write_set):
    name = TRAINING_SETS[recipe]
    assert PREPARERS[name].name == name
    config = compose_job(f"+recipe={recipe}")
    assert config.data.train_files == f"{data_dir}/{name}/train.parquet"
    assert list(config.data.val_files) == [f"{data_dir}/{name}/dev.parquet"]
    # What is missing ends in one line that names what makes it.
    with pytest.raises(SystemExit, match=f"{name}/train.parquet: .* verl-care prepare {name} --source"):
        Preflight().on_run_start(config)
    write_set(name, "train", "train")
    with pytest.raises(SystemExit, match=f"{name}/dev.parquet: .* verl-care prepare {name} --source"):
        Preflight().on_run_start(config)


def test_the_six_test_sets_of_the_paper_are_there():
    paper = {"val_vsi_bench", "val_video_mmmu", "val_mmvu", "val_mvbench", "val_tempcompass", "val_video_mme"}
    assert paper <= set(VAL_RECIPES)


@pytest.mark.parametrize("recipe", VAL_RECIPES)
def test_a_test_set_joins_any_run(recipe, compose_job, data_dir):
    name = recipe.removeprefix("val_")
    assert name in PREPARERS
    config = compose_job(f"+recipe=[care_video,{recipe}]")
    files = list(config.data.val_files)
    assert files == [f"{data_dir}/video_r1/dev.parquet", f"{data_dir}/{name}/test.parquet"]
    grounding = recipe in ("val_nextgqa", "val_charades_sta", "val_activitynet_tvg")
    assert config.data.care.test_video == {name: TEMPORAL_RLT if grounding else VIDEO_R1_TEST}
    # What the run trains on stays as it was.
    assert config.data.care.video == VIDEO_R1_TRAINING
    assert config.trainer.test_freq == 100
    assert config.care.test_sets_at_steps == ["last"]


@pytest.mark.parametrize("form", ["+recipe=[{}]", "+recipe@_global_=[{}]"])
def test_test_sets_do_not_take_each_others_place(form, compose_job, data_dir):
    recipes = ["care_nextgqa", *VAL_RECIPES]
    config = compose_job(
        form.format(",".join(recipes)), "data.care.test_frames=64", "+data.care.val_sets.mine=/x.parquet"
    )
    files = list(config.data.val_files)
    assert len(set(files)) == len(files) == len(VAL_RECIPES) + 2
    assert files[0] == f"{data_dir}/nextgqa/dev.parquet" and f"{data_dir}/nextgqa/test.parquet" in files
    assert config.data.care.test_video.mvbench.max_frames == 64
    # verl resolves the config before it reads the list.
    OmegaConf.resolve(config)
    assert list(config.data.val_files) == files


def test_a_test_set_joins_the_demo_too(compose_job, monkeypatch):
    monkeypatch.setenv("VERL_CARE_DEMO_DIR", "/demo")
    monkeypatch.setenv("VERL_CARE_DATA_DIR", "/data")
    config = compose_job("+recipe=[care_demo,val_mvbench]")
    assert list(config.data.val_files) == ["/demo/val.parquet", "/data/mvbench/test.parquet"]


def test_preflight_of_a_run_with_a_test_set(compose_job, data_dir, write_set):
    recipe = "+recipe=[care_video,val_mvbench]"
    write_set("video_r1", "train", "train")
    write_set("video_r1", "dev", "dev")
    with pytest.raises(SystemExit, match="mvbench/test.parquet: .* verl-care prepare mvbench --source"):
        Preflight().on_run_start(compose_job(recipe))
    write_set("mvbench", "test", "test", task_type="action_count")
    Preflight().on_run_start(compose_job(recipe))
    with pytest.raises(SystemExit, match=r"care.test_sets_at_steps: 150: is neither a multiple"):
        Preflight().on_run_start(
            compose_job(recipe, "care.test_sets_at_steps=[150]", "trainer.total_training_steps=1000")
        )
    with pytest.raises(SystemExit, match="trainer.test_freq=-1"):
        Preflight().on_run_start(compose_job(recipe, "trainer.test_freq=-1"))


# ---------------------------------------------------------------- supervised

SFT = {
    # tulerfeng/Video-R1, src/scripts/run_sft_video.sh
    "model.path": SFT_START,
    "optim.lr": 1e-6,
    "optim.clip_grad": 5.0,
    "optim.weight_decay": 0.0,
    "optim.lr_warmup_steps_ratio": 0.0,
    "trainer.total_epochs": 1,
    "trainer.save_freq": 1000,
    "data.train_batch_size": 8,
    "model.enable_gradient_checkpointing": True,
    # As in reinforcement learning
    "data.care.video": VIDEO_R1_TRAINING,
    "data.care.image": {"max_pixels": 200704},
    "data.care.positions": "seconds",
    "data.custom_cls.path": "pkg://verl_care.data.sft_dataset",
    "data.custom_cls.name": "CareSFTDataset",
    "data.truncation": "error",
    # How it hangs in verl
    "data.pad_mode": "no_padding",
    "data.use_dynamic_bsz": True,
    "engine.strategy": "fsdp2",
    "model.use_remove_padding": True,
    "checkpoint.save_contents": ["model", "optimizer", "extra", "hf_model"],
}


@pytest.fixture
def compose_sft(compose_job):
    """The supervised trainer's own config; its search path is that of the session's Hydra."""
    return lambda *overrides: hydra.compose("sft_trainer_engine", overrides=list(overrides))


def test_the_supervised_start_is_the_published_one(compose_sft):
    config = compose_sft("+recipe=sft_video_r1")
    assert {key: OmegaConf.select(config, key, throw_on_missing=True) for key in SFT} == SFT


def test_the_supervised_start_reads_what_the_preparer_writes(compose_sft, data_dir):
    config = compose_sft("+recipe@_global_=sft_video_r1")
    assert PREPARERS["video_r1_cot"].kind == "supervised"
    assert config.data.train_files == f"{data_dir}/video_r1_cot/train.parquet"
    assert config.data.val_files == f"{data_dir}/video_r1_cot/dev.parquet"
    assert config.data.max_token_len_per_gpu >= config.data.max_length
    with pytest.raises(SystemExit, match="train.parquet: .* verl-care prepare video_r1_cot --source"):
        SupervisedPreflight().on_run_start(config)


@pytest.mark.parametrize("hardware", ["gpu8", "cpu"])
def test_the_supervised_start_converts(hardware, compose_sft, tmp_path):
    from transformers import Qwen2_5_VLConfig

    Qwen2_5_VLConfig(architectures=["Qwen2_5_VLForConditionalGeneration"]).save_pretrained(tmp_path)
    config = compose_sft("+recipe=sft_video_r1", f"care_sft_hardware={hardware}")
    OmegaConf.set_struct(config, False)
    config.model.path = str(tmp_path)
    config.model.load_tokenizer = False
    for node in ("model", "engine", "optim", "checkpoint", "profiler"):
        omega_conf_to_dataclass(config[node])
