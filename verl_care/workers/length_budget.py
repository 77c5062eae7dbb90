"""Adapter: how a step samples goes with each training prompt to the agent loop: SIRI's budget, annealed decoding."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, open_dict
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu

from verl_care.config import Config
from verl_care.shaping.annealing import ANNEALING_COLUMN, schedule_of
from verl_care.shaping.siri import MAX_TOKENS_COLUMN, length_budget
from verl_care.workers.trainer_part import TrainerPart

LOGITS_PROCESSOR = "verl_care.workers.vllm_annealing:AnnealedTemperature"
"""Where vLLM finds what scales the logits."""


def prepare_rollout(care: Config, config: DictConfig) -> None:
    """Tells the rollout engine about annealed decoding, where it is on, before the engine starts.

    Args:
        care: the ``care:`` node.
        config: the whole config; vLLM's ``engine_kwargs`` get the logits processor.

    Raises:
        ValueError: an engine, an agent loop or a kind of log-probabilities that does not go with it.
    """
    if not care.annealing.enabled:
        return
    rollout = config.actor_rollout_ref.rollout
    if rollout.agent.default_agent_loop != "care_agent":
        raise ValueError(
            "care.annealing.enabled: set actor_rollout_ref.rollout.agent.default_agent_loop=care_agent, which asks for "
            f"it; got {rollout.agent.default_agent_loop}"
        )
    if rollout.name == "hf":
        return
    if rollout.name != "vllm":
        raise ValueError(f"care.annealing.enabled: rollout.name={rollout.name}; expected vllm or hf")
    if rollout.get("logprobs_mode", "processed_logprobs") != "raw_logprobs":
        raise ValueError(
            "care.annealing.enabled: set actor_rollout_ref.rollout.logprobs_mode=raw_logprobs; others are those of the "
            "annealed distribution"
        )
    with open_dict(config):
        kwargs = rollout.engine_kwargs.setdefault("vllm", {})
        kwargs.logits_processors = [*(kwargs.get("logits_processors") or []), LOGITS_PROCESSOR]


class LengthBudgetMixin(TrainerPart):
    """Gives rows their budget and their temperature, where ``care.siri`` and ``care.annealing`` ask for it."""

    care_config: Config

    def budget_of(self, step: int) -> int:
        """Tokens that a response to a prompt of this step may have."""
        return length_budget(
            step,
            self.care_config.siri,
            response_length=self.config.data.max_response_length,
            total_steps=self.total_training_steps,
        )

    def _next_train_batch(self, num_prompts: int | None = None) -> TensorDict:
        batch = super()._next_train_batch(num_prompts)
        if self.care_config.siri.enabled:
            tu.assign_non_tensor_stack(batch, MAX_TOKENS_COLUMN, [self.budget_of(self.global_steps)] * len(batch))
        if self.care_config.annealing.enabled:
            schedule = schedule_of(self.global_steps, self.care_config.annealing)
            tu.assign_non_tensor_stack(batch, ANNEALING_COLUMN, [schedule] * len(batch))
        return batch

    def _compute_advantage(self, batch: Any, metrics: dict) -> Any:
        if self.care_config.siri.enabled:
            tags = [tag for tag in batch.tags if not tag.get("is_padding", False)]
            # Asynchronous trainers mix prompts of several steps.
            cut = [tag["response_len"] >= self.budget_of(tag["global_steps"]) for tag in tags]
            metrics["care/siri/budget_tokens"] = float(self.budget_of(self.global_steps))
            metrics["care/siri/cut_share"] = sum(cut) / len(cut)
        return super()._compute_advantage(batch, metrics)
