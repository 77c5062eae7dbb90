"""The trainer hook: shapes rewards over the whole batch inside verl's V1 trainers.

``_compute_advantage`` is the one place where a V1 trainer holds all responses of an update, with groups, after padding
and balancing and before advantages. Raw scores stay in ``rm_scores`` (``critic/score``, group filtering, dumps); shaped
rewards go to ``token_level_rewards`` (``critic/rewards``).
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, open_dict
from tensordict import TensorDict
from verl.trainer.ppo.reward import resolve_reward_manager_cls
from verl.trainer.ppo.v1.replay_buffer import DAPO_FILTERED_REWARD_COUNTS_KEY
from verl.trainer.ppo.v1.trainer_base import PPOTrainer, register_trainer
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tensordict_utils as tu

from verl_care.config import Config, load_config
from verl_care.data.shuffle import SHUFFLED_RESPONSES_COLUMN
from verl_care.reward_manager.base import CareRewardManagerBase
from verl_care.shaping.base import NoState, Rule, Shaped, ShapingBatch
from verl_care.shaping.diagnostics import compute_batch_metrics, compute_shaping_metrics, compute_survival_metrics
from verl_care.shaping.groups import group_mean
from verl_care.workers.actor_workers import install_workers
from verl_care.workers.batch import (
    FIELDS,
    RolloutRows,
    add_bonus,
    as_list,
    columns_for,
    read_rollouts,
    spread_advantage,
)
from verl_care.workers.length_budget import LengthBudgetMixin, prepare_rollout
from verl_care.workers.liveness import watch_rollouts
from verl_care.workers.prompt_lifecycle import PromptLifecycleMixin
from verl_care.workers.reward_workers import restarting_reward_workers
from verl_care.workers.rollout_log import RolloutLog
from verl_care.workers.state import check_tracker, resume_state, save_state
from verl_care.workers.token_selection import TokenSelectionMixin, check_loss_mode
from verl_care.workers.validation import ValidationMixin

try:
    import transfer_queue as tq
except ImportError:
    from verl.utils.transferqueue_utils import tq

logger = logging.getLogger(__name__)
logger.setLevel(os.getenv("VERL_LOGGING_LEVEL", "INFO"))


class CareTrainerMixin(ValidationMixin):
    """Adds whole-batch shaping, its state and its log to a V1 trainer.

    The configured reward manager decides: a verl_care manager brings a shaper, any other is left alone and its
    rollouts are only logged.
    """

    verl_mode: str
    """verl's own name of the trainer below."""
    selection_columns: Callable[[list[int], torch.Tensor | None], dict[str, Any]]
    """Columns of the rollout log that ``TokenSelectionMixin`` gives."""
    observe_prompts: Callable[[ShapingBatch, dict], None]
    """What ``PromptLifecycleMixin`` learns from an update."""

    def __init__(self, config: DictConfig) -> None:
        with open_dict(config):
            # verl compares this string in eight places; under our own name a sync trainer would take async paths.
            config.trainer.v1.trainer_mode = self.verl_mode
            if config.get("care") is None:
                config.care = {}
            config.care.hook = f"care_{self.verl_mode}"
        super().__init__(config)
        self._init_care()

    def _init_care(self) -> None:
        """Sets up what the hook needs from ``self.config``; apart from ``__init__`` so that tests can call it alone."""
        self.care_config: Config = load_config(self.config.care)
        manager = resolve_reward_manager_cls(self.config)
        is_ours = isinstance(manager, type) and issubclass(manager, CareRewardManagerBase)
        self.shaper: Rule | None = manager.build_shaper(self.care_config) if is_ours else None
        self.shaper_state: Any = self.shaper.initial_state() if self.shaper is not None else NoState()
        self.num_shuffled_responses = self._count_shuffled_responses()
        prepare_rollout(self.care_config, self.config)
        check_loss_mode(self.care_config, self.config.actor_rollout_ref.actor.loss_agg_mode)
        self._filtered_in_advance: Mapping[float, int] = {}
        self._prompts_an_update = self.config.data.train_batch_size // self.parameter_sync_step
        self._responses_a_prompt = self.config.actor_rollout_ref.rollout.n
        log = self.care_config.rollout_log
        self.rollout_log = (
            RolloutLog(self.config.trainer.default_local_dir, int(log.max_gib * 2**30), log.when_full)
            if log.enabled
            else None
        )
        # separate_async compares the interval with its default; the others only wait for it.
        if self.verl_mode != "separate_async":
            self.replay_buffer.poll_interval = self.care_config.poll_interval
        watch_rollouts(self)

    def _setup(self) -> None:
        with restarting_reward_workers():
            super()._setup()

    def _count_shuffled_responses(self) -> int:
        """Responses on shuffled frames that the agent loop is to give for each training prompt with a video."""
        if self.shaper is None:
            return 0
        rollout = self.config.actor_rollout_ref.rollout
        count = self.care_config.contrast.num_responses(rollout.n)
        loop = rollout.agent.default_agent_loop
        if count and loop == "single_turn_agent":
            logger.warning(
                "care.contrast.enabled=true has no effect: verl's agent loop gives no responses on shuffled frames; "
                "set actor_rollout_ref.rollout.agent.default_agent_loop=care_agent, or care.contrast.enabled=false"
            )
        return count

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        install_workers(self.care_config, self.config, self.role_worker_mapping)

    def _next_train_batch(self, num_prompts: int | None = None) -> TensorDict:
        batch = super()._next_train_batch(num_prompts)
        if self.num_shuffled_responses:
            # One value a row, which verl's asynchronous trainers save with the prompt; validation has other batches.
            tu.assign_non_tensor_stack(batch, SHUFFLED_RESPONSES_COLUMN, [self.num_shuffled_responses] * len(batch))
        return batch

    def prepare_step(self) -> dict:
        metrics = super().prepare_step()
        # separate_async filters groups here too, while its hybrid engine generates; the next update counts them.
        self._filtered_in_advance = metrics.get(DAPO_FILTERED_REWARD_COUNTS_KEY) or {}
        return metrics

    def _compute_advantage(self, batch: Any, metrics: dict) -> Any:
        has_lifecycles = self.care_config.favchat.enabled
        if self.shaper is None and self.rollout_log is None and not has_lifecycles:
            return super()._compute_advantage(batch, metrics)
        wanted = self.shaper.wanted_extra if self.shaper is not None else {}
        texts_are_logged = self.rollout_log is not None and self.rollout_log.keeps_text
        fields = list(dict.fromkeys([*FIELDS, *columns_for(wanted), *(["responses"] if texts_are_logged else [])]))
        norm_by_std = self.config.algorithm.get("norm_adv_by_std_in_grpo", True)
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        rows = read_rollouts(
            batch.keys,
            batch.tags,
            data,
            self.global_steps,
            correct_threshold=self.care_config.shaping.correct_threshold,
            evicted_pass_rate=self._evicted_pass_rates(metrics),
            require_accuracy=self.shaper is not None,
            wanted=wanted,
            rule=self.shaper.name if self.shaper is not None else "",
            decode=lambda ids: self.tokenizer.decode(ids, skip_special_tokens=True),
            norm_by_std=norm_by_std,
        )
        metrics.update(compute_batch_metrics(rows.batch))
        metrics.update(compute_survival_metrics(rows.batch, self._prompts_an_update, self._responses_a_prompt))
        metrics.update(_reward_metrics(rows))
        metrics.update(_shuffled_metrics(rows))
        if has_lifecycles:
            self.observe_prompts(rows.batch, metrics)
        if self.shaper is None:
            shaped = Shaped(bonus=torch.zeros(len(rows)))
            result = super()._compute_advantage(batch, metrics)
        else:
            shaped, self.shaper_state = self.shaper(rows.batch, self.shaper_state)
            metrics.update(shaped.metrics)
            metrics.update(self.shaper.state_metrics(self.shaper_state))
            metrics.update(compute_shaping_metrics(rows.batch, shaped, norm_by_std=norm_by_std))
            advantages = None
            if shaped.advantage is not None:
                self._check_estimator(self.shaper.name)
                advantages = spread_advantage(data["response_mask"], rows, shaped.advantage)
            rewards = add_bonus(data["rm_scores"], rows, shaped.bonus)
            result = self._advantage_of(batch, metrics, data["rm_scores"], rewards, advantages)
        if self.rollout_log is not None:
            self._write_log(self.rollout_log, rows, shaped, data)
        return result

    def _check_estimator(self, rule: str) -> None:
        """Refuses a rule's own advantages where verl would make something else of its rewards than GRPO does."""
        algorithm = self.config.algorithm
        if algorithm.adv_estimator != "grpo" or algorithm.use_kl_in_reward:
            raise ValueError(
                f"rule {rule} gives advantages in place of GRPO's: set algorithm.adv_estimator=grpo and "
                f"algorithm.use_kl_in_reward=False; got {algorithm.adv_estimator} and {algorithm.use_kl_in_reward}"
            )

    def _advantage_of(
        self,
        batch: Any,
        metrics: dict,
        rm_scores: torch.Tensor,
        rewards: torch.Tensor,
        advantages: torch.Tensor | None = None,
    ) -> Any:
        """Advantages of the shaped rewards, verl's or the rule's own, with the raw scores put back behind them."""
        keys, partition_id = batch.keys, batch.partition_id
        tq.kv_batch_put(
            keys=keys, partition_id=partition_id, fields=TensorDict({"rm_scores": rewards}, batch_size=len(keys))
        )
        super()._compute_advantage(batch, metrics)
        restored = {"rm_scores": rm_scores}
        if advantages is not None:
            restored |= {"advantages": advantages, "returns": advantages}
        if not self.config.algorithm.use_kl_in_reward:
            restored["token_level_rewards"] = rewards
        # Workers fetch the fields that the last returned meta names, so this put's is the one to go on with.
        return tq.kv_batch_put(keys=keys, partition_id=partition_id, fields=TensorDict(restored, batch_size=len(keys)))

    def _evicted_pass_rates(self, metrics: dict) -> torch.Tensor | None:
        """Pass rates of the groups that group filtering removed before this update, one a group."""
        counts = Counter(metrics.get(DAPO_FILTERED_REWARD_COUNTS_KEY) or {}) + Counter(self._filtered_in_advance)
        self._filtered_in_advance = {}
        if not counts:
            return None
        metric = self.config.algorithm.filter_groups.metric
        if metric != "acc":
            logger.warning(
                f"algorithm.filter_groups.metric={metric}: competence counts only the groups that are left; "
                "with metric=acc it counts the filtered ones too"
            )
            return None
        return torch.tensor([float(value) for value, count in sorted(counts.items()) for _ in range(count)])

    def _write_log(self, log: RolloutLog, rows: RolloutRows, shaped: Shaped, data: Any) -> None:
        texts: list[str | None] = [None] * len(rows)
        if log.keeps_text:
            responses = data["responses"].unbind()
            texts = self.tokenizer.batch_decode(
                [responses[row].tolist() for row in rows.final_rows], skip_special_tokens=True
            )
        columns = _log_columns(rows, shaped, texts, shaped_by=self.shaper is not None)
        columns |= self.selection_columns(rows.final_rows, data.get("responses"))
        log.write(self.global_steps, self.local_trigger_step, columns)

    def _compute_metrics(self, batch: Any, metrics: dict, timing_raw: dict, global_steps: int, epoch: int) -> None:
        super()._compute_metrics(batch, metrics, timing_raw, global_steps=global_steps, epoch=epoch)
        if self.shaper is not None:
            # verl has averaged over the step's updates; of a state the last one counts.
            metrics.update(self.shaper.state_metrics(self.shaper_state))

    def _save_checkpoint(self) -> None:
        if self.shaper is not None:
            # Before verl's own save, which ends by marking the checkpoint complete.
            folder = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
            save_state(folder, self.shaper.name, self.global_steps, self.shaper_state.to_dict())
        super()._save_checkpoint()

    def _load_checkpoint(self) -> None:
        trainer = self.config.trainer
        if trainer.resume_mode == "auto":
            check_tracker(trainer.default_local_dir)
        super()._load_checkpoint()
        if self.rollout_log is not None and (abandoned := self.rollout_log.remove_after(self.global_steps)):
            logger.warning(
                f"{self.rollout_log.folder}: removed {abandoned} files of steps after {self.global_steps}, "
                "which run again"
            )
        if self.shaper is None or self.global_steps == 0:
            return
        saved = resume_state(
            trainer,
            self.shaper.name,
            self.global_steps,
            self.shaper.state_from_dict,
            on_missing=self.care_config.on_missing_state,
        )
        self.shaper_state = self.shaper_state if saved is None else saved


def _reward_metrics(rows: RolloutRows) -> dict[str, float]:
    """Means over the responses of what the reward manager's first half reports."""
    names = {"unparsed": "unparsed", "reward_error": "reward_errors", "format": "format"}
    names |= {"acc_strict": "acc_strict", "acc_lenient": "acc_lenient"}
    metrics = {}
    for key, name in names.items():
        values = [float(info[key]) for info in rows.reward_extra_info if info.get(key) is not None]
        if values:
            metrics[f"care/{name}"] = sum(values) / len(values)
    return metrics


def _shuffled_metrics(rows: RolloutRows) -> dict[str, float]:
    """What the responses on shuffled frames cost; nothing where there are none."""
    costs = rows.shuffled_costs
    if not costs:
        return {}
    num_tokens = sum(cost.tokens for cost in costs)
    return {
        # verl sums a key with "total" over the updates of a step, and averages the others.
        "care/temporal/tokens_total": float(num_tokens),
        "care/temporal/token_share": num_tokens / (num_tokens + float(rows.batch.length.sum())),
        "care/temporal/seconds": sum(cost.seconds for cost in costs) / len(costs),
        "care/temporal/delay_seconds": sum(cost.delay for cost in costs) / len(costs),
    }


def _log_columns(rows: RolloutRows, shaped: Shaped, texts: list[str | None], *, shaped_by: bool) -> dict[str, list]:
    batch: ShapingBatch = rows.batch
    infos = rows.reward_extra_info
    columns: dict[str, Any] = {
        name: [info.get(name) for info in infos]
        for name in (
            "pred",
            "acc_strict",
            "acc_lenient",
            "acc_shuffled",
            "acc_answer",
            "acc_iou",
            "format",
            "unparsed",
            "reward_error",
        )
    }
    evicted = batch.extra.get("evicted_pass_rate")
    columns |= {
        "uid": rows.uids,
        "session": rows.sessions,
        "prompt_key": list(batch.prompt_key),
        "data_source": rows.data_sources,
        "response": texts,
        "acc": batch.accuracy.tolist(),
        "score": batch.score.tolist(),
        "bonus": shaped.bonus.tolist(),
        "reward": (batch.score + shaped.bonus).tolist(),
        "pass_rate": group_mean(batch.accuracy, batch.group).tolist() if len(rows) else [],
        "length": batch.length.long().tolist(),
        "evicted_pass_rate": [None if evicted is None else evicted.tolist()] * len(rows),
    }
    for name in ("effort_ratio", "stage", "temporal_bonus"):
        if name in shaped.columns:
            columns[name] = as_list(shaped.columns[name])
    return columns


class TrainerParts(TokenSelectionMixin, LengthBudgetMixin, PromptLifecycleMixin, PPOTrainer):
    """The parts that stand between verl's trainers and their base."""


@register_trainer("care_sync")
class CarePPOTrainerSync(CareTrainerMixin, PPOTrainerSync, TrainerParts):
    """verl's ``sync`` trainer with shaping."""

    verl_mode = "sync"


@register_trainer("care_colocate_async")
class CarePPOTrainerColocateAsync(CareTrainerMixin, PPOTrainerColocateAsync, TrainerParts):
    """verl's ``colocate_async`` trainer with shaping."""

    verl_mode = "colocate_async"


@register_trainer("care_separate_async")
class CarePPOTrainerSeparateAsync(CareTrainerMixin, PPOTrainerSeparateAsync, TrainerParts):
    """verl's ``separate_async`` trainer with shaping, once for each of its local updates."""

    verl_mode = "separate_async"
