"""Shaping, state and log of a long, wide run without a model: is every step like the first?

Prints one JSON line: seconds a step at the start and at the end (medians of a tenth of the steps each) and their ratio,
the process's memory at both, and the bytes that state and log take.

    python benchmarks/scale.py --rollouts 100000 --steps 1000
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import psutil
import torch
from rich.progress import track

from verl_care.shaping import get_rule
from verl_care.shaping.base import ShapingBatch
from verl_care.shaping.diagnostics import compute_batch_metrics, compute_shaping_metrics
from verl_care.shaping.groups import group_mean
from verl_care.workers.rollout_log import FOLDER, RolloutLog
from verl_care.workers.state import save_state


def make_batch(step: int, num_rollouts: int, group_size: int) -> ShapingBatch:
    """Answers to new prompts, three in five of them right, in no order."""
    generator = torch.Generator().manual_seed(step)
    group_N = torch.arange(num_rollouts) // group_size
    group_N = group_N[torch.randperm(num_rollouts, generator=generator)]
    accuracy_N = (torch.rand(num_rollouts, generator=generator) < 0.6).float()
    return ShapingBatch(
        score=accuracy_N + 1.0,
        accuracy=accuracy_N,
        correct=accuracy_N > 0.1,
        length=torch.randint(20, 2000, (num_rollouts,), generator=generator).float(),
        group=group_N,
        prompt_key=[f"set/{step}-{group}" for group in group_N.tolist()],
        step=step,
        extra={},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rollouts", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--rule", default="care")
    parser.add_argument("--log-gib", type=float, default=1.0, help="care.rollout_log.max_gib")
    parser.add_argument(
        "--when-full", default="no_texts", choices=["no_texts", "remove_oldest"], help="care.rollout_log.when_full"
    )
    arguments = parser.parse_args()

    rule = get_rule(arguments.rule)
    state = rule.initial_state()
    seconds, memory = [], []
    with tempfile.TemporaryDirectory() as folder:
        log = RolloutLog(folder, int(arguments.log_gib * 2**30), arguments.when_full)
        for step in track(range(1, arguments.steps + 1), description="steps"):
            batch = make_batch(step, arguments.rollouts, arguments.group_size)
            # 100 characters that do not compress to nothing, as answers do.
            texts = [f"{step * i:0100d}" for i in range(len(batch))] if log.keeps_text else [None] * len(batch)
            began = time.perf_counter()
            shaped, state = rule(batch, state)
            compute_batch_metrics(batch)
            compute_shaping_metrics(batch, shaped)
            save_state(f"{folder}/global_step_{step}", arguments.rule, step, state.to_dict())
            log.write(
                step,
                0,
                {
                    "uid": batch.prompt_key,
                    "prompt_key": batch.prompt_key,
                    "response": texts,
                    "acc": batch.accuracy.numpy(),
                    "score": batch.score.numpy(),
                    "bonus": shaped.bonus.numpy(),
                    "reward": (batch.score + shaped.bonus).numpy(),
                    "pass_rate": group_mean(batch.accuracy, batch.group).numpy(),
                    "length": batch.length.long().numpy(),
                },
            )
            seconds.append(time.perf_counter() - began)
            memory.append(psutil.Process().memory_info().rss)
        state_bytes = (Path(folder) / f"global_step_{arguments.steps}" / "care_state.json").stat().st_size
        files = sorted((Path(folder) / FOLDER).glob("*.parquet"), key=lambda path: int(path.stem))
        log_bytes = [path.stat().st_size for path in files]
    tenth = max(arguments.steps // 10, 1)
    first, last = statistics.median(seconds[:tenth]), statistics.median(seconds[-tenth:])
    print(
        json.dumps(
            {
                "rule": arguments.rule,
                "rollouts": arguments.rollouts,
                "steps": arguments.steps,
                "seconds_first": round(first, 4),
                "seconds_last": round(last, 4),
                "ratio": round(last / first, 3),
                "memory_mib_first": round(statistics.median(memory[:tenth]) / 2**20),
                "memory_mib_last": round(statistics.median(memory[-tenth:]) / 2**20),
                "state_bytes": state_bytes,
                "log_steps": len(log_bytes),
                "log_mib": round(sum(log_bytes) / 2**20, 1),
                "log_mib_a_step_first": round(log_bytes[0] / 2**20, 3),
                "log_mib_a_step_last": round(log_bytes[-1] / 2**20, 3),
            }
        )
    )


if __name__ == "__main__":
    main()
