"""verl's and our agent loop workers in one process, without a rollout engine: what a prompt leaves in TransferQueue.

Needs Ray and TransferQueue (fixture ``transfer_queue`` of `verl_care.testing.plugin`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from verl_care.workers.batch import as_list


def compose(model: Path, *overrides: str) -> Any:
    """verl's config by the recipe ``care_demo`` for a model folder, with further overrides."""
    import verl  # noqa: F401  brings the recipes into Hydra's search path
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose(
            "ppo_trainer",
            overrides=["+recipe@_global_=care_demo", f"actor_rollout_ref.model.path={model}", *overrides],
        )


class EchoClient:
    """Stands for the rollout engine: answers with tokens that depend on the seed, and keeps what it was given.

    Args:
        token_ids: what a response is made of.
        length: tokens of a response.
        keep: whether requests are kept, with their media fetched as an engine would.
    """

    def __init__(self, token_ids: Sequence[int], length: int = 12, keep: bool = True) -> None:
        self.token_ids = list(token_ids)
        self.length = length
        self.keep = keep
        self.requests: list[dict[str, Any]] = []

    async def generate(self, *, sampling_params: dict[str, Any], **request: Any) -> Any:
        """Answer one request."""
        import ray
        from verl.workers.rollout.replica import TokenOutput

        if self.keep:
            for name in ("image_data", "video_data"):
                if isinstance(request.get(name), ray.ObjectRef):
                    request[name] = await request[name]
            self.requests.append({**request, "sampling_params": sampling_params})
        start = int(sampling_params.get("seed", 0)) % len(self.token_ids)
        tokens = [self.token_ids[(start + 7 * i) % len(self.token_ids)] for i in range(self.length)]
        return TokenOutput(
            token_ids=tokens,
            log_probs=[-1.0] * len(tokens),
            stop_reason="completed",
            extra_fields={"global_steps": 1, "min_global_steps": 1, "max_global_steps": 1},
        )


def make_worker(config: Any, client: Any, *, ours: bool, reward_handles: Any = None) -> Any:
    """An agent loop worker in this process.

    Args:
        config: verl's whole config.
        client: stands for verl's ``LLMServerClient``.
        ours: `CareAgentLoopWorker`, or verl's own worker.
        reward_handles: reward workers; None scores nothing.
    """
    from verl_care.workers import agent_loop_worker

    worker_class = agent_loop_worker.CareAgentLoopWorker if ours else agent_loop_worker._AgentLoopWorkerTQ
    return worker_class(config, client, None, reward_handles)


def make_prompt(uid: str, content: list[dict[str, Any]], index: int = 0, **fields: Any) -> dict[str, Any]:
    """A prompt as ``generate_sequences`` hands it to ``_run_prompt``."""
    return {
        "raw_prompt": [{"role": "user", "content": content}],
        "uid": uid,
        "index": index,
        "data_source": "test",
        "agent_name": "care_agent",
        "global_steps": 1,
        "reward_model": {"style": "rule", "ground_truth": "A"},
        "extra_info": {"index": index, "problem_type": "multiple choice"},
        **fields,
    }


def run_prompts(worker: Any, prompts: Sequence[dict[str, Any]], n: int) -> None:
    """Run prompts with ``n`` responses each to their end; an error of a session is logged, as in verl."""
    trajectory = {"step": 1, "sample_index": 0, "rollout_n": 0, "validate": False}

    async def run() -> None:
        tasks = [
            asyncio.create_task(worker._run_prompt({**prompt, "__rollout_n__": n}, {"temperature": 1.0}, trajectory))
            for prompt in prompts
        ]
        await asyncio.gather(*tasks)

    asyncio.run(run())


def read_rows(uid: str, n: int, partition: str = "train") -> list[dict[str, Any]]:
    """The rows of a prompt, field by field, in the order of their sessions."""
    import transfer_queue as tq

    rows = []
    for session in range(n):
        data = tq.kv_batch_get(keys=[f"{uid}_{session}_0"], partition_id=partition)
        columns = {key: data[key] for key in data.keys()}
        rows.append(
            {
                key: value.unbind()[0] if isinstance(value, torch.Tensor) else as_list(value)[0]
                for key, value in columns.items()
            }
        )
    return rows
