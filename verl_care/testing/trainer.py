"""A V1 trainer of verl with stand-ins for what needs a model, and one update through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from omegaconf import DictConfig, OmegaConf
from transfer_queue import KVBatchMeta

from verl_care.testing.worker_group import ByteTokenizer, MockWorkerGroup

_BASE_OVERRIDES = (
    "algorithm.adv_estimator=grpo",
    "critic.enable=False",
    "actor_rollout_ref.rollout.name=vllm",
    "trainer.logger=[]",
)


@dataclass(frozen=True)
class Update:
    """What one update gave."""

    batch: KVBatchMeta
    """Rows after balancing, padding rows included, with every field that was put."""
    metrics: dict[str, Any]
    """What verl would log for the step."""

    def keys(self, *, padding: bool = False) -> list[str]:
        """Keys of the real rows, or of the padding rows."""
        tags = zip(self.batch.keys, self.batch.tags, strict=True)
        return [key for key, tag in tags if bool(tag.get("is_padding", False)) == padding]


def build_config(overrides: Sequence[str] = ()) -> DictConfig:
    """verl's whole ``ppo_trainer`` config: GRPO without critic, and your overrides as on the command line.

    Config groups of this package (``+care=base``, ``+recipe=…``) are found as under ``main_ppo``.
    """
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=[*_BASE_OVERRIDES, *overrides])
    OmegaConf.resolve(config)
    return config


def build_trainer(
    trainer: str | type,
    config: DictConfig,
    *,
    worker_group: MockWorkerGroup | None = None,
    tokenizer: Any = None,
    processor: Any = None,
    global_steps: int = 1,
    total_training_steps: int = 1000,
) -> Any:
    """A V1 trainer that can run ``_step_once``, ``_compute_metrics``, ``_save_checkpoint`` and ``_load_checkpoint``.

    The class's own constructor runs; stand-ins take the place of what its ``init()`` would start (worker groups,
    rollout servers, reward workers, data loader).

    Args:
        trainer: a registered name such as ``care_sync``, or a class.
        config: as ``build_config`` gives it; copied.
        worker_group: actor and reference policy; a ``MockWorkerGroup`` with two ranks by default.
        tokenizer: needs ``decode``, ``eos_token_id`` and ``pad_token_id``; a ``ByteTokenizer`` by default.
        processor: of a model with vision; token selection reads its ``image_token_id``, ``video_token_id`` and
            ``video_processor``. None for a text model.
        global_steps: the step that the next update has.
        total_training_steps: where the run would end.
    """
    from verl.trainer.ppo.v1 import get_trainer_cls

    cls = get_trainer_cls(trainer) if isinstance(trainer, str) else trainer
    made = cls(config.copy())
    worker_group = MockWorkerGroup() if worker_group is None else worker_group
    made.actor_rollout_wg = made.ref_policy_wg = worker_group
    made.ref_in_actor = False
    made.tokenizer = ByteTokenizer() if tokenizer is None else tokenizer
    made.processor = processor
    made.distillation_config = None
    made.reward_loop_manager = SimpleNamespace(reward_loop_worker_handles=[])
    made.resource_pool_manager = SimpleNamespace(get_n_gpus=lambda: len(worker_group._dispatch_info["actor"]))
    made.checkpoint_manager = made.standalone_checkpoint_manager = _Idle()
    made.agent_loop_manager = _Idle()
    made.train_dataloader = _Loader()
    made.global_steps = global_steps
    made.total_training_steps = total_training_steps
    made.prev_step_profile = made.curr_step_profile = made.next_step_profile = False
    made.timing_raw = {}
    # separate_async lends its GPUs out between steps; None is neither of its two modes, so that it never switches.
    made.current_mode = None
    made.on_step_begin()
    return made


def run_update(trainer: Any, batch: KVBatchMeta | int) -> Update:
    """Runs one update through the trainer's own methods and computes the step's metrics.

    Args:
        trainer: as ``build_trainer`` gives it; its ``global_steps`` stays.
        batch: rows that ``put_rows`` gave, or a number of prompts for the trainer's replay buffer to sample from
            partition ``train`` (see ``put_groups``).
    """
    timing_raw: dict[str, float] = {}
    metrics: dict[str, Any] = {}
    trainer.timing_raw = timing_raw
    if isinstance(batch, int):
        out = trainer._step_once(metrics, timing_raw, batch)
    else:
        # _step_once samples first; here the rows are chosen by the caller.
        replay_buffer, trainer.replay_buffer = trainer.replay_buffer, _Chosen(batch)
        try:
            out = trainer._step_once(metrics, timing_raw, len(batch))
        finally:
            trainer.replay_buffer = replay_buffer
    timing_raw["step"] = sum(timing_raw.values())
    trainer._compute_metrics(out, metrics, timing_raw, global_steps=trainer.global_steps, epoch=0)
    return Update(batch=out, metrics=metrics)


class _Chosen:
    """A replay buffer that gives one batch."""

    poll_interval = 2.0

    def __init__(self, batch: KVBatchMeta) -> None:
        self._batch = batch

    def sample(self, **_: Any) -> tuple[KVBatchMeta, dict[str, Any]]:
        return self._batch, {}

    def get_sampleable_count(self, *_: Any) -> int:
        return len(self._batch)


class _Idle:
    """A part that is asked for things which have no meaning without a model."""

    agent_loop_workers = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


class _Loader:
    """A data loader that only has a state."""

    def __init__(self) -> None:
        self._state: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state = dict(state)
