"""verl's agent loop workers with the media of a prompt shared by its responses, and positions by the config's rule.

Named by ``actor_rollout_ref.rollout.agent.agent_loop_manager_class``; ``care.video.once=false`` and
``care.video.positions=stock`` give back what verl does.
"""

from __future__ import annotations

import asyncio
from typing import Any

import ray
import torch
from torch import Tensor
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ

from verl_care.config import load_config
from verl_care.workers.positions import ENV_NAME, SECONDS, positions_of_process, use_seconds
from verl_care.workers.prompt_media import CURRENT, Prepared, PromptMedia
from verl_care.workers.shared_inputs import drop_unused

# Ray wraps a decorated class in one of its own, and refuses subclasses of that.
_AgentLoopWorkerTQ: Any = AgentLoopWorkerTQ.__ray_metadata__.modified_class.__bases__[0]


class CareAgentLoopWorker(_AgentLoopWorkerTQ):
    """Agent loop worker whose `CareAgentLoop` sessions share the media of their prompt."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        video = load_config(self.config.get("care")).video
        if video.positions == SECONDS:
            use_seconds(self.processor)
        # A teacher is asked with the media themselves.
        self._shares = video.once and not self.distillation_enabled
        self._limit = asyncio.Semaphore(video.threads)
        self._stored: set[str] = set()

    async def generate_sequences(self, batch: Any) -> None:
        """Start the batch's prompts, after the pixels of prompts that are done with have gone."""
        before = set(self._stored)
        self._stored -= before - await drop_unused(before)
        await super().generate_sequences(batch)

    async def _run_prompt(self, prompt: dict, *args: Any, **kwargs: Any) -> None:
        # verl runs this as a task: what is set here is seen by the sessions that it starts, and by nobody else.
        CURRENT.set(PromptMedia(prompt["uid"], self._limit, self._stored) if self._shares else None)
        await super()._run_prompt(prompt, *args, **kwargs)

    def _compute_multi_modal_inputs(self, output: Any, input_ids: Tensor) -> Any:
        prepared = _prepared()
        if prepared is None or not prepared.holds(output.multi_modal_data or {}):
            return super()._compute_multi_modal_inputs(output, input_ids)
        return prepared.inputs

    def _compute_position_ids(
        self, input_ids: Tensor, attention_mask: Tensor, multi_modal_inputs: Any, mm_processor_kwargs: Any = None
    ) -> Tensor:
        prompt, prepared = CURRENT.get(), _prepared()
        if prompt is None or prepared is None or multi_modal_inputs is not prepared.inputs:
            return super()._compute_position_ids(input_ids, attention_mask, multi_modal_inputs, mm_processor_kwargs)
        known = len(prepared.token_ids)
        if prompt.positions is None:
            ids = torch.tensor([prepared.token_ids])
            prompt.positions = super()._compute_position_ids(
                ids, torch.ones_like(ids), _for_positions(prepared), mm_processor_kwargs
            )
        media = {getattr(self.processor, name, None) for name in ("image_token_id", "video_token_id")}
        is_text = media.isdisjoint([*prepared.token_ids[-1:], *input_ids[0, known:].tolist()])
        if is_text and attention_mask.all() and input_ids[0, :known].tolist() == prepared.token_ids:
            # Text after text: one further on every axis.
            steps = torch.arange(1, input_ids.shape[1] - known + 1)
            return torch.cat([prompt.positions, prompt.positions[..., -1:] + steps], dim=-1)
        return super()._compute_position_ids(input_ids, attention_mask, _for_positions(prepared), mm_processor_kwargs)


def _prepared() -> Prepared | None:
    prompt = CURRENT.get()
    return None if prompt is None else prompt.prepared


def _for_positions(prepared: Prepared) -> dict[str, Any]:
    """What verl reads for positions, in a dict of its own: it takes the token types out."""
    names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts", "mm_token_type_ids")
    return {name: prepared.features[name] for name in names if name in prepared.features}


class CareAgentLoopManager(AgentLoopManagerTQ):
    """verl's manager over workers of the class above."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        wanted, found = load_config(config.get("care")).video.positions, positions_of_process()
        if wanted != found:
            raise ValueError(
                f"care.video.positions={wanted}, but rollout engines run with {ENV_NAME}={found}; set "
                f"+ray_kwargs.ray_init.runtime_env.env_vars.{ENV_NAME}={wanted} (verl_care's recipes do)"
            )
        super().__init__(config, *args, **kwargs)
        self.agent_loop_workers_class = ray.remote(CareAgentLoopWorker)
