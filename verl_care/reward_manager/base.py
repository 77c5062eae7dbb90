"""The two halves of a verl_care reward manager.

``run_single`` runs in verl's reward workers, one rollout at a time and without state: decode, score, report. The batch
half runs in the trainer, on all responses of an update: ``build_shaper`` gives it to our trainers.
"""

from __future__ import annotations

import inspect
import logging
from typing import Any, ClassVar

from omegaconf import OmegaConf
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from verl_care.config import Config
from verl_care.data.shuffle import SHUFFLED_FIELD
from verl_care.rewards.scorer import RESULT_KEYS, normalise_result
from verl_care.shaping import get_rule
from verl_care.shaping.base import Rule
from verl_care.shaping.contrast import ContrastedRule

logger = logging.getLogger(__name__)

EXTRA_KEYS = (*RESULT_KEYS, "reward_error", "acc_shuffled")
"""Keys of ``reward_extra_info``, the same for every rollout: the scorer's, whether the scoring function raised (0.0 or
1.0), and the accuracy of the session's response on shuffled frames (None where there is none)."""

_FAILED: dict[str, float | str | None] = {
    **dict.fromkeys(RESULT_KEYS, 0.0),
    "acc_answer": None,
    "acc_iou": None,
    "unparsed": 1.0,
    "pred": "",
}


class CareRewardManagerBase(RewardManagerBase):
    """Base of the reward managers whose rewards are shaped over the whole batch.

    Needs one of our trainers (``trainer.v1.trainer_mode=care_sync`` or an async sibling): under any other trainer the
    batch half would never run and plain GRPO would train, so the manager refuses to start there.
    """

    rule_name: ClassVar[str]
    """Name of the shaping rule, as ``get_rule`` knows it."""

    def __init__(
        self,
        config: Any,
        tokenizer: Any,
        compute_score: Any,
        reward_router_address: Any = None,
        reward_model_tokenizer: Any = None,
    ) -> None:
        require_hook(config, self.rule_name)
        super().__init__(config, tokenizer, compute_score)
        self.is_async_reward_score = inspect.iscoroutinefunction(compute_score)
        self.reward_kwargs = (
            {"reward_router_address": reward_router_address, "reward_model_tokenizer": reward_model_tokenizer}
            if reward_router_address is not None
            else {}
        )

    @classmethod
    def build_rule(cls, config: Config) -> Rule:
        """The manager's rule with the constants of ``care.rules.<rule>``."""
        return get_rule(cls.rule_name, **config.rules.get(cls.rule_name, {}))

    @classmethod
    def build_shaper(cls, config: Config) -> Rule | ContrastedRule:
        """The batch half: the rule, behind the temporal contrast where ``care.contrast.enabled``.

        Args:
            config: the typed ``care:`` node.

        Returns:
            ``shaper(batch, state) -> (Shaped, state)`` with ``initial_state`` and ``state_from_dict``.
        """
        rule = cls.build_rule(config)
        return ContrastedRule(rule, config.contrast) if config.contrast.enabled else rule

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """Scores the final output of one session.

        Returns:
            ``reward_score``, the raw score, and ``reward_extra_info`` with ``EXTRA_KEYS``. A scoring function that
            raises is logged with its record and counted in ``reward_error``; the response then scores 0.
        """
        item = data[-1:][0]
        fields = item.non_tensor_batch
        responses = item.batch["responses"]
        num_tokens = int(item.batch["attention_mask"][-responses.shape[-1] :].sum())
        arguments = {
            "data_source": fields["data_source"],
            "ground_truth": fields["reward_model"]["ground_truth"],
            "extra_info": dict(fields.get("extra_info") or {}),
        }
        tool_fields = fields.get("tool_extra_fields") or {}
        shuffled_text = tool_fields.get(SHUFFLED_FIELD)
        arguments["extra_info"].update({k: v for k, v in tool_fields.items() if k != SHUFFLED_FIELD})
        arguments["extra_info"]["num_turns"] = fields.get("__num_turns__")
        arguments["extra_info"]["rollout_reward_scores"] = fields.get("reward_scores", {})

        result, error = await self._score(responses[:num_tokens], arguments)
        info: dict[str, Any] = {**result, "reward_error": float(error), "acc_shuffled": None}
        if shuffled_text is not None:
            shuffled, shuffled_error = await self._score(shuffled_text, arguments)
            info["acc_shuffled"] = None if shuffled_error else shuffled["acc"]
        return {"reward_score": result["score"], "reward_extra_info": info}

    async def _score(self, response: Any, arguments: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """Result of the scoring function on token ids or a text, and whether it raised."""

        def decode() -> str:
            return response if isinstance(response, str) else self.tokenizer.decode(response, skip_special_tokens=True)

        def decode_and_score() -> dict[str, Any]:
            # One hop to a thread: decoding and scoring both block.
            return normalise_result(self.compute_score(solution_str=decode(), **arguments, **self.reward_kwargs))

        try:
            if self.is_async_reward_score:
                text = await self.loop.run_in_executor(None, decode)
                result = normalise_result(
                    await self.compute_score(solution_str=text, **arguments, **self.reward_kwargs)
                )
            else:
                result = await self.loop.run_in_executor(None, decode_and_score)
            return result, False
        except Exception:
            record = f"{arguments['data_source']}/{arguments['extra_info'].get('index', '?')}"
            logger.exception(f"record {record}: the reward function raised; the response scores 0")
            return dict(_FAILED), True


def require_hook(config: Any, rule_name: str) -> None:
    """Refuses a config in which no trainer of ours has left its mark.

    Raises:
        RuntimeError: ``care.hook`` is not set; names the trainers that set it.
    """
    if not OmegaConf.select(config, "care.hook"):
        raise RuntimeError(
            f"reward.reward_manager.name={rule_name} shapes rewards over the whole batch and needs a trainer that does "
            "it: set trainer.v1.trainer_mode=care_sync (or care_colocate_async, care_separate_async) with "
            "trainer.use_v1=True; "
            f"found trainer.v1.trainer_mode={OmegaConf.select(config, 'trainer.v1.trainer_mode')}"
        )
