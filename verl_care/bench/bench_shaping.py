"""CARE's shaping of one update against sorting as many floats."""

from __future__ import annotations

from typing import Any

from verl_care.bench.clock import cpu_seconds, summary, take_turns


def measure(*, rollouts: int = 1_000_000, repeats: int = 9) -> dict[str, Any]:
    """CPU seconds on one thread of ``shape`` and of ``torch.sort``, and the memory that ``shape`` takes."""
    import tracemalloc

    import torch

    from verl_care.shaping.care import shape

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        draws = torch.Generator().manual_seed(0)
        accuracy = (torch.rand(rollouts, generator=draws) > 0.4).float()
        length = torch.randint(20, 700, (rollouts,), generator=draws).float()
        group = torch.arange(rollouts) // 8
        floats = torch.rand(rollouts, generator=draws)
        found = take_turns(
            {
                "ours": lambda: cpu_seconds(lambda: shape(accuracy, length, group, 0.6)),
                "sort": lambda: cpu_seconds(lambda: torch.sort(floats)),
            },
            repeats,
        )
        # Objects that Python makes: with a loop over rollouts there would be some for each of them.
        tracemalloc.start()
        shape(accuracy, length, group, 0.6)
        python_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    finally:
        torch.set_num_threads(threads)
    ours, sort = summary(found["ours"]), summary(found["sort"])
    return {
        "work": f"{rollouts} rollouts in groups of 8; torch.sort of as many floats",
        "unit": "CPU seconds, one thread",
        "ours": ours,
        "sort": sort,
        "ratio": round(ours["median"] / sort["median"], 3),
        "python_bytes": python_bytes,
    }
