"""Does the demo learn? Runs it once a seed and prints one JSON line: accuracy, held-out accuracy, clips swapped.

    python benchmarks/demo_learning.py --seeds 0 1 2

Exit status 1 where a run fails, or where a seed misses a goal: mean accuracy of the last ten steps at least 0.2 above
that of the first ten, held-out accuracy at least 0.85 at the end, and chance once the clips are swapped between the
questions: within two standard errors of the share of questions whose new clip has the same answer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from verl_care.data import demo as assets
from verl_care.data import demo_clips
from verl_care.demo import run_demo
from verl_care.report.curves import ACCURACY, COMPETENCE, LENGTH, Curve, moving_mean, read_metrics

RISE, HELD_OUT, WINDOW = 0.2, 0.85, 10


def swapped_chance(folder: Path) -> dict[str, float]:
    """What two policies score on the records whose clips were swapped, and how many there are.

    Returns:
        ``seeing``: a perfect eye, right where the other clip has by chance the same answer; ``guessing``: a blind
        policy that draws from the possible answers; ``records``.
    """
    extra = [
        row["extra_info"]
        for row in pq.read_table(folder / "val.parquet").to_pylist()
        if row["data_source"] == assets.SWAPPED_SOURCE
    ]
    return {
        "seeing": statistics.fmean(info["same_answer"] for info in extra),
        "guessing": statistics.fmean(1 / len(demo_clips.answers_of(info["kind"])) for info in extra),
        "records": len(extra),
    }


def judge(curve: Curve, chance: dict[str, float]) -> dict[str, Any]:
    """The figures of one run and whether they reach the goals.

    Args:
        curve: metrics by step, at least ``2 * WINDOW`` steps.
        chance: of `swapped_chance`.
    """
    accuracy, length = curve.series(ACCURACY)[1], curve.series(LENGTH)[1]
    held_out = curve.series(f"val-core/{assets.DATA_SOURCE}/acc/mean@1")[1]
    swapped = curve.series(f"val-core/{assets.SWAPPED_SOURCE}/acc/mean@1")[1]
    first, last = statistics.fmean(accuracy[:WINDOW]), statistics.fmean(accuracy[-WINDOW:])
    expected = chance["seeing"]
    error = math.sqrt(expected * (1 - expected) / chance["records"])
    return {
        "steps": len(accuracy),
        "accuracy_first": round(first, 4),
        "accuracy_last": round(last, 4),
        "held_out_before": round(held_out[0], 4),
        "held_out_after": round(held_out[-1], 4),
        "swapped_after": round(swapped[-1], 4),
        "swapped_chance": {name: round(value, 4) for name, value in chance.items()},
        "length_tokens_first": round(statistics.fmean(length[:WINDOW]), 2),
        "length_tokens_longest": round(max(moving_mean(length, 5)), 2),
        "length_tokens_last": round(statistics.fmean(length[-WINDOW:]), 2),
        "competence": [round(value, 4) for value in curve.series(COMPETENCE)[1][-1:]],
        "reached": last - first >= RISE and held_out[-1] >= HELD_OUT and abs(swapped[-1] - expected) <= 2 * error,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--manager", default="care")
    parser.add_argument("--out-dir", type=Path, default=Path("outputs/demo_learning"))
    args = parser.parse_args()
    runs = []
    for seed in args.seeds:
        out_dir = args.out_dir / f"seed{seed}"
        started = time.perf_counter()
        # Standard output is for the one JSON line.
        with contextlib.redirect_stdout(sys.stderr):
            if status := run_demo(seed=seed, steps=args.steps, manager=args.manager, out_dir=out_dir):
                return status
            seconds = time.perf_counter() - started
            folder = assets.build_assets(seed=seed)
        figures = judge(read_metrics(out_dir / "metrics.jsonl"), swapped_chance(folder))
        runs.append({"seed": seed, "seconds": round(seconds, 1), **figures})
    print(json.dumps({"benchmark": "demo_learning", "manager": args.manager, "runs": runs}))
    return 0 if all(run["reached"] for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
