"""Seeds of rollouts."""

import asyncio

import pytest
from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import _agent_loop_registry
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from verl_care.workers.agent_loop import CareAgentLoop, rollout_seed

ROW = {"data_source": "demo", "index": 4, "session_id": 2, "global_steps": 9, "uid": "u", "raw_prompt": []}


def test_a_seed_is_the_same_on_every_machine_and_in_every_version():
    # printf 0/demo/4/2/9 | b2sum -l 64: e6edaa9deea5b2d9, without its last bit.
    assert rollout_seed(0, "demo", 4, 2, 9) == 8320071896747137388


def test_every_part_of_the_identity_counts():
    base = (0, "demo", 4, 2, 9)
    changed = [
        (1, *base[1:]),
        (0, "other", *base[2:]),
        (0, "demo", 5, 2, 9),
        (0, "demo", 4, 3, 9),
        (0, "demo", 4, 2, 8),
    ]
    seeds = {rollout_seed(*identity) for identity in [base, *changed]}
    assert len(seeds) == 6 and all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("custom", [{"seed": 3}, {"seed": None}, None])
def test_the_loop_seeds_its_own_copy_of_the_sampling_parameters(monkeypatch, custom):
    seen = []

    async def run(self, sampling_params, priority=0, **kwargs):
        seen.append((sampling_params, priority, kwargs))

    monkeypatch.setattr(SingleTurnAgentLoop, "run", run)
    loop = object.__new__(CareAgentLoop)
    loop.rollout_config = OmegaConf.create({"custom": custom})
    shared = {"temperature": 1.0}
    asyncio.run(loop.run(shared, priority=2, **ROW))
    [(params, priority, kwargs)] = seen
    assert shared == {"temperature": 1.0} and priority == 2 and kwargs == ROW
    if custom and custom["seed"] is not None:
        assert params == {"temperature": 1.0, "seed": rollout_seed(3, "demo", 4, 2, 9)}
    else:
        assert params == shared


def test_verl_knows_the_loop_by_name():
    assert _agent_loop_registry["care_agent"] == {"_target_": "verl_care.workers.agent_loop.CareAgentLoop"}
