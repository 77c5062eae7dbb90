"""`verl-care demo`: builds the demo's assets, runs verl's own `main_ppo` on them, shows the curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def run_demo(
    *,
    steps: int = 40,
    engine: str = "hf",
    manager: str = "care",
    video_dir: Path | None = None,
    out_dir: Path | None = None,
    seed: int = 0,
    assets_only: bool = False,
    overrides: Sequence[str] = (),
) -> int:
    """Make the demo's assets, train on them through `verl.trainer.main_ppo`, and print where the results are.

    Args:
        steps: optimisation steps, at least 1.
        engine: rollout engine, "hf" or "vllm".
        manager: name of the reward manager ("care", "naive", "dapo", ...).
        video_dir: folder with your own .mp4 files; they become the clips. None: clips are drawn.
        out_dir: folder for log, metrics, rollout log, checkpoint and curve. None: `./outputs/care_demo/<date>`.
        seed: seed of assets and run.
        assets_only: stop once the assets stand.
        overrides: further Hydra overrides for `main_ppo`, last, so they win.

    Returns:
        The exit status: 0, 1 when the work failed (one line on stderr says why), 130 after Ctrl-C.
    """
    raise NotImplementedError
