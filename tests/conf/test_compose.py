"""Every YAML under conf/ composes into verl's config, and passes what verl and verl_care check at start."""

import itertools
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf
from transformers import Qwen2_5_VLConfig
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import omega_conf_to_dataclass, validate_config

import verl_care.conf
from verl_care.config import Config, load_config

CONF = Path(verl_care.conf.__path__[0])


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


RECIPES = [name for name in names("recipe") if not name.startswith(("val_", "sft_"))]
HARDWARE = names("care_hardware")
MODELS = names("care_model")
ABLATIONS = names("care")

# Those that stand for themselves; the others change a few words of one of them.
FAMILIES = ["care_demo", "care_video", "temporal_rlt", "video_rts"]

# The demo brings a model and a data set of its own: another model group entry is not meant for it.
MATRIX = [
    *itertools.product(FAMILIES, HARDWARE, [None], ["base"]),
    *itertools.product(sorted({*RECIPES} - {*FAMILIES}), [None], [None], ["base"]),
    *itertools.product(["care_video"], ["gpu8"], MODELS, ["base"]),
    *itertools.product(["care_demo", "care_video", "care_temporal_rlt"], [None], [None], ABLATIONS),
]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    """A folder that passes for a model where only its config is read."""
    folder = tmp_path_factory.mktemp("model")
    Qwen2_5_VLConfig(architectures=["Qwen2_5_VLForConditionalGeneration"]).save_pretrained(folder)
    return folder


def overrides_of(recipe, hardware, model, ablation) -> list[str]:
    chosen = [f"+recipe={recipe}", f"care={ablation}"]
    if hardware:
        chosen.append(f"care_hardware={hardware}")
    if model:
        chosen.append(f"care_model={model}")
    return chosen


@pytest.mark.parametrize(("recipe", "hardware", "model", "ablation"), MATRIX)
def test_every_combination_starts(recipe, hardware, model, ablation, compose_job, model_dir):
    config = compose_job(*overrides_of(recipe, hardware, model, ablation))
    assert not OmegaConf.missing_keys(config) - {"reward.reward_model.rollout.name"}

    validate_config(config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    load_config(config.care)
    # The raw score is accuracy plus format: by it, an all-wrong group would stay.
    assert config.algorithm.filter_groups.metric == "acc"

    # What the workers convert: an unknown key raises here, and only here.
    OmegaConf.set_struct(config, False)
    actor_rollout_ref = config.actor_rollout_ref
    omega_conf_to_dataclass(actor_rollout_ref.actor)
    omega_conf_to_dataclass(actor_rollout_ref.rollout)
    omega_conf_to_dataclass(as_worker_does(actor_rollout_ref.ref))
    # The model's own files stay unread.
    actor_rollout_ref.model.path = str(model_dir)
    actor_rollout_ref.model.load_tokenizer = False
    actor_rollout_ref.model.external_lib = None
    omega_conf_to_dataclass(actor_rollout_ref.model)


def as_worker_does(ref: DictConfig) -> DictConfig:
    """Renames the reference policy's fields as verl 0.9.1's `ActorRolloutRefWorker.init_model` does."""
    for name in ("micro_batch_size", "micro_batch_size_per_gpu", "max_token_len_per_gpu"):
        ref[f"ppo_{name}"] = ref.pop(f"log_prob_{name}")
    ref.use_dynamic_bsz = ref.pop("log_prob_use_dynamic_bsz")
    return ref


def test_conversion_notices_an_unknown_key(compose_job):
    config = compose_job("+recipe=care_video", "+actor_rollout_ref.rollout.frames=16")
    with pytest.raises(Exception, match="frames"):
        omega_conf_to_dataclass(config.actor_rollout_ref.rollout)


def test_every_file_belongs_to_a_group_that_is_tried():
    groups = {path.parent.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml")}
    assert groups == {
        "care",
        "care_dataset",
        "care_hardware",
        "care_methods",
        "care_model",
        "care_sft_hardware",
        "care_tokens",
        "recipe",
    }


def test_base_holds_the_defaults_of_the_typed_config():
    base = OmegaConf.to_container(OmegaConf.load(CONF / "care" / "base.yaml"))
    assert base == OmegaConf.to_container(OmegaConf.structured(Config))


PUBLISHED = {
    # 1Pansy/Video-CARE, scripts/run_grpo_video.sh
    "actor_rollout_ref.model.path": "Video-R1/Qwen2.5-VL-7B-COT-SFT",
    "data.max_prompt_length": 16384,
    "data.max_response_length": 768,
    "data.train_batch_size": 8,
    "actor_rollout_ref.rollout.n": 8,
    "actor_rollout_ref.actor.optim.lr": 1e-6,
    "actor_rollout_ref.actor.optim.lr_scheduler_type": "cosine",
    "actor_rollout_ref.actor.optim.weight_decay": 0.01,
    "actor_rollout_ref.actor.optim.clip_grad": 5.0,
    "actor_rollout_ref.actor.grad_clip": 5.0,
    "actor_rollout_ref.actor.kl_loss_coef": 0.04,
    "trainer.total_epochs": 1,
    "trainer.n_gpus_per_node": 8,
    "trainer.nnodes": 1,
    # grpo_trainer.py: sampling, loss, KL
    "actor_rollout_ref.rollout.temperature": 1.0,
    "actor_rollout_ref.rollout.top_p": 0.95,
    "actor_rollout_ref.rollout.logprobs_mode": "raw_logprobs",
    "actor_rollout_ref.actor.loss_agg_mode": "seq-mean-token-mean",
    "actor_rollout_ref.actor.use_kl_loss": True,
    "actor_rollout_ref.actor.kl_loss_type": "low_var_kl",
    "actor_rollout_ref.actor.ppo_mini_batch_size": 8,
    "actor_rollout_ref.actor.ppo_epochs": 1,
    "actor_rollout_ref.actor.entropy_coeff": 0,
    "algorithm.adv_estimator": "grpo",
    "algorithm.norm_adv_by_std_in_grpo": True,
    "algorithm.use_kl_in_reward": False,
    "algorithm.filter_groups.enable": False,
    "algorithm.filter_groups.metric": "acc",
    # How it hangs in verl
    "actor_rollout_ref.rollout.name": "vllm",
    "actor_rollout_ref.rollout.tensor_model_parallel_size": 1,
    "actor_rollout_ref.rollout.prompt_length": 16384,
    "actor_rollout_ref.rollout.response_length": 768,
    "actor_rollout_ref.actor.strategy": "fsdp2",
    "actor_rollout_ref.ref.strategy": "fsdp2",
    "actor_rollout_ref.model.use_remove_padding": True,
    "reward.reward_manager.name": "care",
    "reward.custom_reward_function.path": "pkg://verl_care.rewards.scorer",
    "reward.custom_reward_function.name": "compute_score",
    "reward.custom_reward_function.reward_kwargs.scoring": "strict",
    "data.custom_cls.path": "pkg://verl_care.data.dataset",
    "data.custom_cls.name": "CareDataset",
    "data.image_patch_size": 14,
    # qwen-vl-utils as shipped with Video-R1, vision_process.py: 128 * 28 * 28, int(1.05 * 128 * 28 * 28), 256 * 28 * 28
    "data.care.video": {"fps": 2.0, "min_frames": 4, "max_frames": 16, "min_pixels": 100352, "max_pixels": 105369},
    "data.care.image": {"max_pixels": 200704},
    "trainer.use_v1": True,
    "trainer.v1.trainer_mode": "care_sync",
    # CARE
    "care.hook": None,
    "care.scoring": "strict",
    "care.shaping.ema_decay": 0.99,
    "care.shaping.initial_competence": 0.60,
    "care.shaping.statistics": "batch",
    "care.shaping.competence_scope": "global",
}


@pytest.fixture(scope="module")
def care_video(compose_job):
    return compose_job("+recipe=care_video")


@pytest.mark.parametrize("key", PUBLISHED)
def test_care_video_is_the_published_run(key, care_video):
    assert OmegaConf.select(care_video, key, throw_on_missing=True) == PUBLISHED[key]


@pytest.mark.parametrize("hardware", ["gpu1", "gpu8", "nodes"])
def test_the_longest_sequence_fits_one_micro_batch_and_one_chunk(hardware, compose_job):
    care_video = compose_job("+recipe=care_video", f"care_hardware={hardware}")
    assert care_video.actor_rollout_ref.actor.use_dynamic_bsz
    longest = care_video.data.max_prompt_length + care_video.data.max_response_length
    assert care_video.actor_rollout_ref.actor.ppo_max_token_len_per_gpu >= longest
    assert care_video.actor_rollout_ref.ref.log_prob_max_token_len_per_gpu >= longest
    assert care_video.actor_rollout_ref.rollout.max_num_batched_tokens >= longest


@pytest.mark.parametrize("manager", ["naive", "dapo"])
def test_swapping_the_manager_changes_nothing_else(manager, care_video, compose_job):
    swapped = compose_job("+recipe=care_video", f"reward.reward_manager.name={manager}")
    assert swapped.reward.reward_manager.name == manager
    swapped.reward.reward_manager.name = "care"
    assert swapped == care_video


@pytest.mark.parametrize(
    ("ablation", "changed"),
    {
        "no_amplifier": {"shaping.amplifier": False},
        "no_calibration": {"shaping.calibration": False},
        "no_stages": {"shaping.fixed_stage": "explore"},
        "no_effort": {
            f"shaping.{stage}.coefficient": 0.0 for stage in ("explore_hard", "explore", "refine", "concise")
        },
        "no_temporal": {"contrast.enabled": False},
        "static_long": {
            "shaping.fixed_stage": "explore_hard",
            "shaping.amplifier": False,
            "shaping.explore_hard.slope_pass_rate": 0.0,
            "shaping.explore_hard.slope_competence": 0.0,
        },
        "static_short": {
            "shaping.fixed_stage": "concise",
            "shaping.amplifier": False,
            "shaping.concise.slope_pass_rate": 0.0,
            "shaping.concise.slope_competence": 0.0,
        },
        "published": {"shaping.statistics": "group", "shaping.competence_scope": "replicas(8)"},
        "ema_per_prompt": {"shaping.ema_per": "prompt"},
        "base": {},
    }.items(),
)
def test_an_ablation_changes_its_own_fields_alone(ablation, changed, care_video, compose_job):
    expected = OmegaConf.to_container(care_video.care)
    for key, value in changed.items():
        node, _, leaf = key.rpartition(".")
        parent = expected
        for part in node.split("."):
            parent = parent[part]
        assert parent[leaf] != value
        parent[leaf] = value
    assert OmegaConf.to_container(compose_job("+recipe=care_video", f"care={ablation}").care) == expected


def test_one_word_overrides_reach_the_shaping(compose_job):
    config = compose_job("+recipe=care_video", "care.shaping.ema_decay=0.9", "care.shaping.competence_scope=replicas:8")
    shaping = load_config(config.care).shaping
    assert shaping.ema_decay == 0.9
    assert shaping.num_competences == 8


def test_a_misspelt_constant_is_an_error(compose_job):
    with pytest.raises(Exception, match="ema_decya"):
        compose_job("+recipe=care_video", "care.shaping.ema_decya=0.9")


@pytest.mark.parametrize(
    ("model", "patch"), [("qwen25vl_3b", 14), ("qwen25vl_7b", 14), ("qwen3vl_4b", 16), ("qwen3vl_8b", 16)]
)
def test_a_model_brings_its_patch_size(model, patch, compose_job):
    config = compose_job("+recipe=care_video", f"care_model={model}")
    assert config.data.image_patch_size == patch
    assert config.actor_rollout_ref.model.path.startswith("Qwen/")


def test_nodes_takes_the_number_of_machines(compose_job):
    config = compose_job("+recipe=care_video", "care_hardware=nodes", "trainer.nnodes=4")
    assert (config.trainer.nnodes, config.trainer.n_gpus_per_node) == (4, 8)


def test_the_short_and_the_guarded_form_of_a_recipe_are_the_same(care_video, compose_job):
    assert compose_job("+recipe@_global_=care_video") == care_video
