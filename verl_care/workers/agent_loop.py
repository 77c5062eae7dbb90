"""Agent loop ``care_agent``: verl's single turn, with a seed of its own for every rollout."""

import hashlib
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop


def rollout_seed(seed: int, data_source: str, index: int, session_id: int, step: int) -> int:
    """Return the sampling seed of one rollout, a 63-bit hash of what identifies it.

    It depends on the record, not on verl's uid (new in every run) nor on the order of arrival.

    Args:
        seed: the run's seed, ``actor_rollout_ref.rollout.custom.seed``.
        data_source: the record's data source.
        index: the record's ``extra_info.index``.
        session_id: number of the rollout within its prompt, from 0.
        step: training step the prompt was drawn for.
    """
    identity = f"{seed}/{data_source}/{index}/{session_id}/{step}".encode()
    return int.from_bytes(hashlib.blake2b(identity, digest_size=8).digest(), "big") >> 1


class CareAgentLoop(SingleTurnAgentLoop):
    """One turn; sets ``seed`` in the sampling parameters when ``rollout.custom.seed`` is given."""

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> AgentLoopOutput:
        """Generate one response for a dataset row (verl passes its fields, ``session_id`` and ``global_steps``)."""
        seed = (self.rollout_config.get("custom") or {}).get("seed")
        if seed is not None:
            # Copied: verl hands one dict to all sessions of a prompt.
            sampling_params = {
                **sampling_params,
                "seed": rollout_seed(
                    int(seed),
                    str(kwargs["data_source"]),
                    int(kwargs["index"]),
                    int(kwargs["session_id"]),
                    int(kwargs["global_steps"]),
                ),
            }
        return await super().run(sampling_params, priority=priority, **kwargs)
