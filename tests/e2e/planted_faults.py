"""An agent loop and a scoring function that fail for some rollouts, always the same ones; for test_soak.py."""

from __future__ import annotations

import asyncio
import zlib
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput

from verl_care.rewards import scorer
from verl_care.workers.agent_loop import CareAgentLoop, rollout_seed

SESSIONS = 200
"""Of so many sessions five raise, one waits for an answer that never comes, and each of the other faults hits three."""

SCORES = 50
"""One response in so many makes the scoring function raise."""


class FaultyAgentLoop(CareAgentLoop):
    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> AgentLoopOutput:
        identity = (int(kwargs[name]) for name in ("index", "session_id", "global_steps"))
        number = rollout_seed(0, "fault", *identity) % SESSIONS
        if number < 5:
            raise RuntimeError("planted: this session fails")
        self.server_manager = FaultyServer(self.server_manager, number, self.tokenizer, self.response_length)
        return await super().run(sampling_params, priority=priority, **kwargs)


class FaultyServer:
    """Stands for the rollout servers and spoils the answer of some sessions."""

    def __init__(self, client: Any, number: int, tokenizer: Any, response_length: int) -> None:
        self.client, self.number, self.tokenizer, self.response_length = client, number, tokenizer, response_length

    async def generate(self, **request: Any) -> Any:
        if self.number == 5:
            await asyncio.Event().wait()
        answer = await self.client.generate(**request)
        tokens = {
            6: [],
            7: [self.tokenizer.eos_token_id] * 3,
            8: (answer.token_ids * self.response_length)[: 2 * self.response_length],
        }.get(self.number % 67, answer.token_ids)
        log_probs = [-1.0] * len(tokens) if tokens is not answer.token_ids else answer.log_probs
        return answer.model_copy(update={"token_ids": tokens, "log_probs": log_probs})


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any, **kwargs: Any) -> dict:
    if zlib.crc32(solution_str.encode()) % SCORES == 0:
        raise RuntimeError("planted: this response cannot be scored")
    return scorer.compute_score(data_source, solution_str, ground_truth, extra_info, **kwargs)
