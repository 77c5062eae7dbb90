"""The first half of the reward manager ``care`` against verl's ``naive``, with the same scoring function."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

from verl_care.bench.clock import cpu_seconds, summary, take_turns


def measure(*, rollouts: int = 2000, repeats: int = 7) -> dict[str, Any]:
    """CPU seconds of ``run_single`` over many rollouts, and the longest time that one kept the event loop."""
    import numpy as np
    import torch
    from omegaconf import OmegaConf
    from tensordict import TensorDict
    from verl import DataProto
    from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls

    from verl_care.rewards.scorer import compute_score
    from verl_care.testing import tiny_models

    tokenizer = tiny_models.build_processor("qwen2_5_vl").tokenizer
    thoughts = "hmm wait let me look again at the clip first then so maybe yes " * 12
    texts = [f"<think>{thoughts}</think><answer>{'ABCD'[i % 4]}</answer>" for i in range(64)]
    config = OmegaConf.create({"care": {"hook": "care_sync"}, "reward": {}, "reward_model": {}})

    def make_row(i: int) -> DataProto:
        ids = torch.tensor([tokenizer(texts[i % len(texts)])["input_ids"]])
        prompt = torch.zeros(1, 8, dtype=torch.int64)
        batch = TensorDict(
            {"prompts": prompt, "responses": ids, "attention_mask": torch.ones(1, 8 + ids.shape[1]).long()},
            batch_size=1,
        )
        fields = {
            "data_source": "bench",
            "reward_model": {"style": "rule", "ground_truth": "A"},
            "extra_info": {"index": i, "problem_type": "multiple choice"},
            "__num_turns__": 2,
            "tool_extra_fields": {},
        }
        arrays = {}
        for name, value in fields.items():
            arrays[name] = np.empty(1, dtype=object)
            arrays[name][0] = value
        return DataProto(batch=batch, non_tensor_batch=arrays)

    rows = [make_row(i) for i in range(rollouts)]
    managers = {
        name: get_reward_manager_cls(name)(config=config, tokenizer=tokenizer, compute_score=compute_score)
        for name in ("care", "naive")
    }

    async def score_all(manager: Any) -> list[dict]:
        return await asyncio.gather(*[manager.run_single(row) for row in rows])

    def arm(name: str) -> Any:
        # verl's managers keep the event loop on which they were made.
        loop = managers[name].loop = asyncio.new_event_loop()
        try:
            return loop.run_until_complete(score_all(managers[name]))
        finally:
            loop.close()

    scores = {name: [result["reward_score"] for result in arm(name)] for name in managers}
    if scores["care"] != scores["naive"]:
        raise RuntimeError("care and naive give the same rollouts different scores")
    found = take_turns({name: partial(cpu_seconds, partial(arm, name)) for name in managers}, repeats)
    ours, stock = summary(found["care"]), summary(found["naive"])
    return {
        "work": f"run_single of {rollouts} rollouts with the same scoring function",
        "unit": "CPU seconds",
        "ours": ours,
        "stock": stock,
        "ratio": round(ours["median"] / stock["median"], 3),
        "longest_block_ms": {name: round(1000 * _longest_block(managers[name], rows[:50]), 2) for name in managers},
    }


def _longest_block(manager: Any, rows: list[Any]) -> float:
    """Seconds for which scoring kept everything else on its event loop waiting, at most."""

    async def watch() -> float:
        longest, last = 0.0, time.perf_counter()
        work = asyncio.gather(*[manager.run_single(row) for row in rows])
        while not work.done():
            await asyncio.sleep(0)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
        return longest

    loop = manager.loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(watch())
    finally:
        loop.close()
