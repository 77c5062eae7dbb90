"""Adapter: SIRI's budget of the step goes with each training prompt to the agent loop, which samples no further."""

from __future__ import annotations

from typing import Any

from tensordict import TensorDict
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils import tensordict_utils as tu

from verl_care.config import Config
from verl_care.shaping.siri import MAX_TOKENS_COLUMN, length_budget


class LengthBudgetMixin(PPOTrainer):
    """Gives rows their budget, where ``care.siri.enabled`` asks for it."""

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
        return batch

    def _compute_advantage(self, batch: Any, metrics: dict) -> Any:
        if self.care_config.siri.enabled:
            tags = [tag for tag in batch.tags if not tag.get("is_padding", False)]
            # Asynchronous trainers mix prompts of several steps.
            cut = [tag["response_len"] >= self.budget_of(tag["global_steps"]) for tag in tags]
            metrics["care/siri/budget_tokens"] = float(self.budget_of(self.global_steps))
            metrics["care/siri/cut_share"] = sum(cut) / len(cut)
        return super()._compute_advantage(batch, metrics)
