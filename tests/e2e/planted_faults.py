"""An agent loop and a scoring function that fail for some rollouts, always the same ones; for test_soak.py."""

from __future__ import annotations

import zlib
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput

from verl_care.rewards import scorer
from verl_care.workers.agent_loop import CareAgentLoop, rollout_seed

SESSIONS = 40
"""One session in so many raises."""

SCORES = 50
"""One response in so many makes the scoring function raise."""


class FaultyAgentLoop(CareAgentLoop):
    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> AgentLoopOutput:
        identity = (int(kwargs[name]) for name in ("index", "session_id", "global_steps"))
        if rollout_seed(0, "fault", *identity) % SESSIONS == 0:
            raise RuntimeError("planted: this session fails")
        return await super().run(sampling_params, priority=priority, **kwargs)


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any, **kwargs: Any) -> dict:
    if zlib.crc32(solution_str.encode()) % SCORES == 0:
        raise RuntimeError("planted: this response cannot be scored")
    return scorer.compute_score(data_source, solution_str, ground_truth, extra_info, **kwargs)
