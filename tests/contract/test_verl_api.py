"""What this package relies on in verl 0.9.1 and its companions. A failure names the part of ours to look at.

Source is read where the order of statements or a literal matters and running it would need a cluster.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import textwrap
from pathlib import Path

import pytest

TRAINER_BASE = "verl.trainer.ppo.v1.trainer_base"


def relied_on(holds: bool, fact: str, used_by: str) -> None:
    assert holds, f"no longer so in verl {importlib.metadata.version('verl')}: {fact}. Look at {used_by}"


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


def tree_of(function) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(function)))


def calls_in_order(function) -> list[str]:
    """Names of the functions and methods called, in the order of the source."""
    calls = [node for node in ast.walk(tree_of(function)) if isinstance(node, ast.Call)]
    calls.sort(key=lambda node: (node.lineno, node.col_offset))
    return [node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "") for node in calls]


def in_this_order(calls: list[str], wanted: list[str]) -> bool:
    rest = iter(calls)
    return all(name in rest for name in wanted)


@pytest.fixture(scope="module")
def base():
    return importlib.import_module(TRAINER_BASE)


@pytest.fixture(scope="module")
def verl_root() -> Path:
    return Path(importlib.import_module("verl").__file__).parent


@pytest.mark.parametrize(
    ("distribution", "version"),
    [("verl", "0.9.1"), ("qwen-vl-utils", "0.0.14"), ("tensordict", "0.10.0")],
)
def test_versions_that_the_contract_was_read_in(distribution, version):
    assert importlib.metadata.version(distribution) == version, (
        f"{distribution}: read this file against the new version before changing the pin in pyproject.toml"
    )


# ---------------------------------------------------------------- trainer_mode


def mode_reads(path: Path) -> set[tuple[str, str]]:
    """Where a file decides by ``trainer_mode``: (function, the comparison or look-up)."""
    found = set()

    def visit(node: ast.AST, function: str, around: ast.AST | None) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        if isinstance(node, ast.Compare | ast.Call):
            around = node
        if isinstance(node, ast.Attribute) and node.attr == "trainer_mode" and isinstance(node.ctx, ast.Load):
            is_lookup = isinstance(around, ast.Call) and getattr(around.func, "attr", "") == "get"
            if is_lookup or isinstance(around, ast.Compare):
                found.add((function, ast.unparse(around)))
        for child in ast.iter_child_nodes(node):
            visit(child, function, around)

    visit(ast.parse(path.read_text()), "", None)
    return found


def test_trainer_mode_is_compared_in_the_places_we_know(verl_root):
    expected = {
        ("trainer_base.py", "__init__", "self.config.trainer.v1.get(self.trainer_mode, {})"),
        ("trainer_base.py", "_build_replay_buffer", "self.trainer_mode == 'sync'"),
        ("trainer_base.py", "_build_replay_buffer", "self.config.trainer.v1.get(self.trainer_mode, {})"),
        ("trainer_base.py", "_init_dataloader", "self.trainer_mode != 'sync'"),
        ("trainer_base.py", "_load_checkpoint", "self.trainer_mode != 'sync'"),
        ("trainer_base.py", "_reissue_inflight_prompts", "self.trainer_mode == 'sync'"),
        ("trainer_base.py", "_save_checkpoint", "self.trainer_mode != 'sync'"),
        ("trainer_base.py", "_submit_batch_to_rollout", "self.trainer_mode != 'sync'"),
    }
    found = {
        (path.name, function, where)
        for path in (verl_root / "trainer/ppo/v1").glob("*.py")
        for function, where in mode_reads(path)
    }
    used_by = "CareTrainerMixin.__init__ in verl_care/workers/trainer.py, which puts the built-in name back"
    relied_on(found == expected, f"comparisons with trainer_mode: {sorted(found ^ expected)} came or went", used_by)


def test_no_other_file_reads_trainer_mode(verl_root):
    files = {str(path.relative_to(verl_root)) for path in verl_root.rglob("*.py") if "trainer_mode" in path.read_text()}
    expected = {
        "trainer/main_ppo.py",
        "trainer/ppo/v1/replay_buffer.py",
        "trainer/ppo/v1/trainer_base.py",
        "utils/skip/rollout_skip.py",
    }
    relied_on(
        files == expected,
        f"files that name trainer_mode: {sorted(files ^ expected)} came or went",
        "CareTrainerMixin.__init__ in verl_care/workers/trainer.py",
    )


def test_the_trainer_is_chosen_before_its_constructor_runs(verl_root):
    source = (verl_root / "trainer/main_ppo.py").read_text()
    chosen = source.find("trainer_cls = get_trainer_cls(config.trainer.v1.trainer_mode)")
    made = source.find("trainer_cls(config=config)")
    relied_on(
        0 < chosen < made,
        "main_ppo looks the trainer up by trainer_mode and then calls it with config=",
        "CareTrainerMixin.__init__, which rewrites trainer_mode once the name has served",
    )


@pytest.mark.parametrize("name", ["sync", "colocate_async", "separate_async"])
def test_built_in_trainers_are_registered(name):
    from verl.trainer.ppo.v1 import get_trainer_cls

    relied_on(
        issubclass(get_trainer_cls(name), importlib.import_module(TRAINER_BASE).PPOTrainer),
        f"trainer {name} is registered",
        f"care_{name} in verl_care/workers/trainer.py",
    )


# ---------------------------------------------------------------- trainer methods


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("__init__", ["self", "config"]),
        ("_step_once", ["self", "metrics", "timing_raw", "sample_batch_size"]),
        ("_balance_batch", ["self", "batch", "metrics", "logging_prefix", "keep_minibatch"]),
        ("_compute_old_log_prob", ["self", "batch", "metrics"]),
        ("_compute_advantage", ["self", "batch", "metrics"]),
        ("_compute_metrics", ["self", "batch", "metrics", "timing_raw", "global_steps", "epoch"]),
        ("_save_checkpoint", ["self"]),
        ("_load_checkpoint", ["self"]),
        ("_build_replay_buffer", ["self"]),
    ],
)
def test_trainer_methods_take_what_the_mixin_passes(base, method, expected):
    found = parameters(getattr(base.PPOTrainer, method))
    relied_on(
        found == expected,
        f"PPOTrainer.{method} takes {expected} (now {found})",
        "CareTrainerMixin in verl_care/workers/trainer.py and verl_care/testing/trainer.py",
    )


def test_separate_async_leaves_the_hook_alone():
    from verl.trainer.ppo.v1 import get_trainer_cls

    for name in ("sync", "colocate_async", "separate_async"):
        own = vars(get_trainer_cls(name))
        for method in ("_compute_advantage", "_save_checkpoint", "_load_checkpoint", "_step_once", "step"):
            relied_on(
                method not in own,
                f"trainer {name} does not define {method} itself",
                "CareTrainerMixin, which overrides the base class's",
            )


def test_an_update_runs_its_parts_in_the_known_order(base):
    wanted = [
        "sample",
        "_compute_reward_colocate",
        "_balance_batch",
        "_compute_old_log_prob",
        "_compute_ref_log_prob",
        "_compute_values",
        "_compute_advantage",
        "_update_critic",
        "_update_actor",
    ]
    relied_on(
        in_this_order(calls_in_order(base.PPOTrainer._step_once), wanted),
        f"_step_once calls {', '.join(wanted)} in this order",
        "CareTrainerMixin._compute_advantage (needs scores and padding rows there, and no update yet)",
    )


def test_a_step_is_saved_before_it_ends(base):
    calls = calls_in_order(base.PPOTrainer.fit)
    relied_on(
        in_this_order(calls, ["step", "_save_checkpoint", "on_step_end", "_compute_metrics", "kv_clear"]),
        "fit calls step, _save_checkpoint, on_step_end, _compute_metrics, kv_clear in this order",
        "CareTrainerMixin: the state must be updated inside the step, or a resumed run misses one update",
    )
    calls = calls_in_order(base.PPOTrainer._setup)
    relied_on("_load_checkpoint" in calls, "_setup loads the checkpoint", "CareTrainerMixin._load_checkpoint")


def test_the_tracker_file_is_written_before_the_checkpoint_callback(base):
    source = inspect.getsource(base.PPOTrainer._save_checkpoint)
    written = source.index("f.write(str(self.global_steps))")
    called = source.rindex("checkpoint_callback.on_save")
    relied_on(
        written < called,
        "_save_checkpoint writes latest_checkpointed_iteration.txt before the callback",
        "CareTrainerMixin._save_checkpoint, which writes its state before both for that reason",
    )


def test_advantages_are_computed_from_rm_scores_and_written_by_key(base):
    source = inspect.getsource(base.PPOTrainer._compute_advantage)
    relied_on(
        'data.batch["token_level_scores"] = data.batch["rm_scores"]' in source
        and "kv_batch_put(keys=batch.keys" in source.replace("\n", ""),
        "_compute_advantage reads rm_scores and puts advantages under batch.keys",
        "CareTrainerMixin._compute_advantage, which puts shaped rm_scores for the call and the raw ones back",
    )


def test_metrics_prefer_token_level_rewards(base):
    source = inspect.getsource(base.PPOTrainer._compute_metrics)
    relied_on(
        'if "token_level_rewards" not in data' in source
        and 'data["token_level_scores"] = data["rm_scores"]' in source
        and "is_padding" in source,
        "_compute_metrics takes score from rm_scores, reward from token_level_rewards, and drops padding by its tag",
        "CareTrainerMixin: raw scores in critic/score, shaped ones in critic/rewards",
    )


def test_finding_the_latest_checkpoint():
    from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

    relied_on(
        parameters(find_latest_ckpt_path)[0] == "path",
        "find_latest_ckpt_path(path) gives the global_step folder",
        "CareTrainerMixin._load_checkpoint",
    )


# ---------------------------------------------------------------- replay buffer and batches


def test_replay_buffer_polls_at_an_attribute():
    from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

    default = inspect.signature(ReplayBuffer.__init__).parameters["poll_interval"].default
    relied_on(
        default == 2.0 and "time.sleep(self.poll_interval)" in inspect.getsource(ReplayBuffer._wait_for_next_poll),
        "ReplayBuffer sleeps for self.poll_interval, 2.0 s by default",
        "care.poll_interval, set on the buffer of care_sync by verl_care/workers/trainer.py",
    )


def test_the_replay_buffer_waits_and_drops_in_methods_of_its_own(base):
    from verl.experimental.agent_loop.agent_loop import AgentLoopManager
    from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync
    from verl.workers.rollout.llm_server import LLMServerManager

    used_by = "verl_care/workers/liveness.py"
    for method in (ReplayBuffer.sample, ReplayBufferAsync.wait_for_sampleable):
        order = ["_terminal_eviction_reasons", "_evict_terminal_groups", "_wait_for_next_poll"]
        relied_on(in_this_order(calls_in_order(method), order), f"{method.__qualname__} calls {order}", used_by)
    relied_on(
        parameters(ReplayBuffer._evict_terminal_groups)[1:] == ["global_steps", "partition_id", "eviction_reasons"]
        and "stale_uids, dapo_uids, failed_uids, dapo_counts" in inspect.getsource(ReplayBuffer._evict_terminal_groups),
        "eviction reasons are the stale, filtered and failed prompts and a count of the filtered",
        used_by,
    )
    relied_on(
        hasattr(base.PPOTrainer, "_rollout_server_managers")
        and "self.agent_loop_workers" in inspect.getsource(AgentLoopManager._init_agent_loop_workers)
        and "self.server_handles" in inspect.getsource(LLMServerManager._initialize_llm_servers)
        and "self.global_load_balancer" in inspect.getsource(LLMServerManager._init_global_load_balancer),
        "trainers and managers hold the actors of the rollout side",
        used_by,
    )


def test_separate_async_compares_its_waiting_with_the_poll_interval():
    from verl.trainer.ppo.v1 import get_trainer_cls

    relied_on(
        "poll_interval" in inspect.getsource(get_trainer_cls("separate_async")._step_had_idle),
        "separate_async judges idle time by poll_interval",
        "verl_care/workers/trainer.py, which leaves poll_interval alone there",
    )


def test_group_filtering_reports_what_it_evicted():
    from verl.trainer.ppo.v1 import replay_buffer

    relied_on(
        replay_buffer.DAPO_FILTERED_REWARD_COUNTS_KEY == "_dapo_filtered_reward_counts",
        "evicted groups are counted under metrics['_dapo_filtered_reward_counts']",
        "CareTrainerMixin, which lets the competence see them",
    )
    source = inspect.getsource(replay_buffer.ReplayBuffer._dapo_filtered_keys)
    relied_on(
        '"reward_extra_info"' in source and '"rm_scores"' in source,
        "group filtering reads rm_scores or extra_fields.reward_extra_info",
        "CareTrainerMixin: filtering must see the raw score",
    )


def test_padding_rows_carry_a_tag_and_no_reward():
    import torch
    from verl.trainer.ppo.padding_utils import construct_minimal_padding_template

    source = {"response_mask": torch.ones(3), "data_source": "toy", "extra_fields": {"reward_extra_info": {"acc": 1.0}}}
    fields, tag = construct_minimal_padding_template(source, {"seq_len": 9}, eos_token_id=1)
    relied_on(
        tag["is_padding"] is True
        and not fields["response_mask"].any()
        and not fields["rm_scores"].any()
        and fields["extra_fields"]["reward_extra_info"]["acc"] == 1.0,
        "a padding row has the tag is_padding, mask and reward 0, and a real row's extra_fields",
        "verl_care/workers/batch.py, which drops padding by its tag, never by its content",
    )


def test_only_final_outputs_enter_the_group():
    from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

    relied_on(
        'key.rsplit("_", 2)' in inspect.getsource(compute_advantage_for_multi_trajectories),
        "row keys are {uid}_{session}_{index} and the highest index of a session is its final output",
        "verl_care/workers/batch.py and verl_care/testing/rows.py",
    )


@pytest.mark.parametrize(
    ("key", "rule"),
    [
        ("care/competence", "weighted_avg"),
        ("care/unparsed", "weighted_avg"),
        ("care/softmax", "max"),
        ("care/minority", "min"),
        ("care/groups/all_right", "weighted_avg"),
    ],
)
def test_metrics_are_merged_by_parts_of_their_names(key, rule):
    from verl.trainer.ppo.v1.utils import MetricsAggregator

    relied_on(
        MetricsAggregator()._get_aggregation_type(key) == rule,
        f"over the updates of a step {key} is merged by {rule}",
        "the names of the care/ metrics in verl_care/shaping and docs",
    )


def test_a_put_gives_back_every_tag_and_field(partition, transfer_queue):
    import torch
    from tensordict import TensorDict

    def column(*rows):
        return TensorDict({"x": torch.nested.as_nested_tensor(list(rows), layout=torch.jagged)}, batch_size=len(rows))

    tq = transfer_queue
    tq.kv_batch_put(["a", "b"], partition, fields=column(torch.ones(2), torch.ones(2)), tags=[{"i": 0}, {"i": 1}])
    both = TensorDict({"y": torch.ones(2, 3)}, batch_size=2)
    meta = tq.kv_batch_put(["b", "a"], partition, fields=both, tags=[{"j": 1}, {"j": 0}])
    relied_on(
        meta.tags == [{"i": 1, "j": 1}, {"i": 0, "j": 0}] and set(meta.fields) == {"x", "y"} and not meta.extra_info,
        "kv_batch_put gives a meta with merged tags, all fields and empty extra_info",
        "CareTrainerMixin._compute_advantage, which returns the meta of its last put",
    )
    got = tq.kv_batch_get(["a", "missing"], partition, select_fields=["x", "unknown"])
    relied_on(
        len(got) == 1 and list(got.keys()) == ["x"],
        "kv_batch_get leaves missing keys and unknown fields out without an error",
        "verl_care/workers/batch.py and verl_care/testing/rows.py, which count rows and fields themselves",
    )
    relied_on(got["x"].is_nested, "fields come back jagged, rows of equal length too", "verl_care/workers/batch.py")


# ---------------------------------------------------------------- rewards


def test_naive_reward_manager_can_be_extended():
    from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager

    wanted = ["self", "config", "tokenizer", "compute_score", "reward_router_address", "reward_model_tokenizer"]
    relied_on(
        parameters(NaiveRewardManager.__init__) == wanted
        and inspect.iscoroutinefunction(NaiveRewardManager.run_single),
        f"NaiveRewardManager({', '.join(wanted[1:])}) with an async run_single(data)",
        "verl_care/reward_manager/care.py",
    )
    source = inspect.getsource(NaiveRewardManager.run_single)
    relied_on(
        'score = result["score"]' in source and 'reward_extra_info["acc"] = score' in source,
        "a dict needs the key score and is copied whole; a number becomes acc",
        "verl_care/rewards/scorer.py, whose keys are the same under care and naive",
    )


def test_reward_workers_are_made_in_the_trainers_setup_without_restarts(base):
    from verl.experimental.reward_loop.reward_loop import RewardLoopManager

    constructor = inspect.getsource(RewardLoopManager.__init__)
    relied_on(
        "RewardLoopManager(" in inspect.getsource(base.PPOTrainer._setup)
        and "self._init_reward_loop_workers()" in constructor
        and ".remote(self.config, self.reward_router_address)"
        in inspect.getsource(RewardLoopManager._init_reward_loop_workers)
        and "max_restarts" not in inspect.getsource(RewardLoopManager),
        "the trainer makes RewardLoopManager by its name; its workers take no restarts",
        "verl_care/workers/reward_workers.py, which may go once verl restarts them",
    )


def test_reward_managers_are_registered_and_resolved_by_config():
    from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls
    from verl.experimental.reward_loop.reward_manager.registry import REWARD_MANAGER, register
    from verl.trainer.ppo.reward import resolve_reward_manager_cls

    relied_on(
        parameters(register) == ["name"] and get_reward_manager_cls("naive") is REWARD_MANAGER["naive"],
        "reward managers register under a name in experimental.reward_loop",
        "verl_care/plugin.py",
    )
    relied_on(
        parameters(resolve_reward_manager_cls) == ["config"],
        "resolve_reward_manager_cls(config) gives the configured class without making it",
        "CareTrainerMixin, which asks that class for its batch half",
    )


def test_the_default_scorer_refuses_unknown_data_sources():
    from verl.utils.reward_score import default_compute_score

    with pytest.raises(NotImplementedError):
        default_compute_score("Video-R1-260k", "A", "A")


def test_custom_reward_functions_are_found_by_package_path():
    from verl.utils.import_utils import load_extern_object

    found = load_extern_object("pkg://verl.utils.reward_score", "default_compute_score")
    relied_on(
        callable(found), "pkg:// paths load from installed packages", "reward.custom_reward_function in conf/recipe"
    )


# ---------------------------------------------------------------- plugin, platform, engines


def test_plugins_load_with_verl_and_their_failure_is_hidden(verl_root):
    source = (verl_root / "__init__.py").read_text()
    relied_on(
        '_entry_points(group="verl.plugins")' in source and "VERL_USE_EXTERNAL_PLUGINS" in source,
        "entry points of the group verl.plugins are loaded at the end of import verl",
        "pyproject.toml and verl_care/plugin.py",
    )
    relied_on(
        "except Exception" in source and ".debug(" in source,
        "a plugin that fails is reported at DEBUG only",
        "verl_care/plugin.py, which prints its own failure (and need not when verl does)",
    )


def test_platform_registry_and_interface():
    from verl.plugin.platform.platform_base import PlatformBase
    from verl.plugin.platform.platform_manager import PlatformRegistry

    relied_on(
        parameters(PlatformRegistry.register) == ["platform"]
        and callable(PlatformRegistry.get)
        and callable(PlatformRegistry.registered_names),
        "PlatformRegistry has register(platform), get(name) and registered_names()",
        "verl_care/workers/cpu/platform.py",
    )
    required = {
        "device_name vendor_name device_module is_available current_device device_count set_device synchronize",
        "manual_seed manual_seed_all set_allocator_settings empty_cache get_device_capability",
        "communication_backend_name visible_devices_envvar nvtx_range profiler_start profiler_stop",
        "ray_resource_name ray_noset_envvars is_ipc_supported cudart",
    }
    wanted = set(" ".join(required).split())
    found = set(PlatformBase.__abstractmethods__)
    relied_on(found == wanted, f"a platform must define: {sorted(found ^ wanted)} came or went", "PlatformCPU")
    relied_on(
        "use_smi_check" in parameters(PlatformBase.is_platform_available) and hasattr(PlatformBase, "rollout_env_vars"),
        "is_platform_available(use_smi_check) and rollout_env_vars() can be overridden",
        "verl_care/workers/cpu/platform.py",
    )


def test_engines_and_rollouts_register_by_name():
    from verl.workers.engine.base import EngineRegistry
    from verl.workers.rollout import base as rollout_base
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    relied_on(
        parameters(EngineRegistry.register) == ["model_type", "backend", "device", "vendor"],
        "EngineRegistry.register(model_type, backend, device, vendor)",
        "verl_care/workers/cpu/engine.py",
    )
    relied_on(
        parameters(RolloutReplicaRegistry.register) == ["name", "loader"],
        "RolloutReplicaRegistry.register(name, loader)",
        "verl_care/workers/cpu/__init__.py",
    )
    relied_on(
        rollout_base._ROLLOUT_REGISTRY.get(("vllm", "async"), "").startswith("verl."),
        "_ROLLOUT_REGISTRY maps (name, mode) to a class path",
        "verl_care/workers/cpu/__init__.py",
    )


def test_agent_loops_register_by_name_and_take_seeds_through_sampling_params():
    from verl.experimental.agent_loop import agent_loop
    from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

    entry = agent_loop._agent_loop_registry.get("single_turn_agent")
    relied_on(
        isinstance(entry, dict) and set(entry) == {"_target_"},
        "_agent_loop_registry maps a name to {'_target_': class path}",
        "verl_care/workers/cpu/__init__.py, which registers care_agent",
    )
    relied_on(
        parameters(SingleTurnAgentLoop.run)[:3] == ["self", "sampling_params", "priority"],
        "SingleTurnAgentLoop.run(sampling_params, priority, **kwargs)",
        "verl_care/workers/agent_loop.py",
    )


# ---------------------------------------------------------------- data


def test_datasets_can_be_extended():
    from verl.utils.dataset.rl_dataset import RLHFDataset

    relied_on(
        parameters(RLHFDataset._build_messages)[:3] == ["self", "example", "key"]
        and "process_multi_modal_info" in vars(RLHFDataset),
        "RLHFDataset has _build_messages(example, key) and the class method process_multi_modal_info",
        "verl_care/data/dataset.py",
    )


def test_qwen_vl_utils_takes_another_video_reader():
    from qwen_vl_utils import vision_process

    relied_on(
        isinstance(vision_process.VIDEO_READER_BACKENDS, dict)
        and hasattr(vision_process, "FORCE_QWENVL_VIDEO_READER")
        and callable(vision_process.get_video_reader_backend.cache_clear),
        "VIDEO_READER_BACKENDS is a dict, FORCE_QWENVL_VIDEO_READER selects from it through a cached function",
        "register_pyav_reader in verl_care/data/video.py",
    )


def test_torchvision_still_lacks_its_video_reader():
    import torchvision

    relied_on(
        not hasattr(torchvision.io, "read_video"),
        "torchvision.io has no read_video, so that qwen-vl-utils' fallback cannot work",
        "verl_care/data/video.py: with a fallback that works the PyAV reader is a choice, no need",
    )
