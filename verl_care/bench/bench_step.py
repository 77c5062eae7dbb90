"""Whole training steps of verl's ``main_ppo`` on the demo's recipe, with 32 frames of 480p clips.

Frames are scaled down to 12,544 pixels: a CPU that computed with 8,192 video tokens a response would measure its matrix
products, which a real run leaves to GPUs.

Two runs that take turns, each in processes of its own: our agent loop workers, and verl's. Everything else is the same:
trainer, poll interval, reader, engine, model, clips, seed.
"""

from __future__ import annotations

import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FRAMES, SECONDS, MAX_PIXELS = 32, 20, 12_544
# verl's own workers know no other positions than stock ones.
_ARMS = {
    "ours": (),
    "stock": ("actor_rollout_ref.rollout.agent.agent_loop_manager_class=null",),
}


def measure(*, steps: int = 4, prompts: int = 2, responses: int = 8, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Wall seconds of a step and CPU seconds of all processes a step; the first step of each run is left out."""
    folder = Path(tempfile.mkdtemp(prefix="vc-bench-"))
    try:
        _make_assets(folder, prompts)
        found = {name: _run(folder, name, arm, steps, prompts, responses, overrides) for name, arm in _ARMS.items()}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    ours, stock = found["ours"], found["stock"]
    return {
        "work": f"{prompts} prompts x {responses} responses a step on the CPU demo's trainer, {FRAMES} frames of a "
        f"{SECONDS} s 480p clip at {MAX_PIXELS} pixels a frame; steps 2 to {steps} count",
        "unit": "wall seconds a step, median",
        "ours": ours,
        "stock": stock,
        "ratio": round(stock["step_seconds"] / ours["step_seconds"], 2),
        "cpu_ratio": round(stock["cpu_seconds_a_step"] / ours["cpu_seconds_a_step"], 2),
    }


def _make_assets(folder: Path, prompts: int) -> None:
    """A model, and clips with a question about each."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from verl_care.data import demo_model
    from verl_care.testing import clips, tiny_models

    processor = tiny_models.build_processor("qwen2_5_vl", max_pixels=1 << 30)
    model = tiny_models.build_model("qwen2_5_vl", processor.tokenizer)
    demo_model.save_model(model, processor, folder / "model")
    rows = []
    # Prompts of different lengths: verl 0.9.1 fails where all rows of a rank are equally long.
    questions = ("What colour is it?", "Which colour does the thing in the clip have?")
    for index in range(max(prompts, 4)):
        clip = clips.write_clip(
            folder / f"{index}.mp4", seconds=SECONDS, fps=15, width=854, height=480, seed=index, crf="28"
        )
        rows.append(
            {
                "data_source": "bench",
                "prompt": [{"role": "user", "content": f"<video>{questions[index % 2]}"}],
                "videos": [{"video": str(clip), "nframes": FRAMES, "min_pixels": 3136, "max_pixels": MAX_PIXELS}],
                "images": [],
                "reward_model": {"style": "rule", "ground_truth": "A"},
                "extra_info": {"index": index, "problem_type": "multiple choice"},
            }
        )
    schema_row = pa.Table.from_pylist(rows)
    for name in ("train", "val"):
        pq.write_table(schema_row, folder / f"{name}.parquet")


def _run(
    folder: Path, name: str, arm: Sequence[str], steps: int, prompts: int, responses: int, overrides: Sequence[str]
) -> dict[str, Any]:
    import psutil

    from verl_care import launch

    log = folder / f"{name}.log"
    command = [
        "+recipe@_global_=care_demo",
        f"data.train_files={folder}/train.parquet",
        f"data.val_files={folder}/val.parquet",
        f"actor_rollout_ref.model.path={folder}/model",
        f"trainer.default_local_dir={folder}/{name}",
        f"hydra.run.dir={folder}/hydra",
        f"data.train_batch_size={prompts}",
        f"actor_rollout_ref.rollout.n={responses}",
        "data.max_prompt_length=1024",
        "data.max_response_length=8",
        "care.contrast.enabled=false",
        "care.rollout_log.enabled=false",
        # verl's own workers have no other; the work is the same.
        "care.video.positions=stock",
        "trainer.val_before_train=false",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
        f"trainer.total_training_steps={steps}",
        *arm,
        *overrides,
    ]
    marks: list[tuple[float, float]] = []

    with launch.main_ppo(command, log=log, cwd=folder) as process:
        seen = 0
        spent: dict[int, float] = {}
        while process.poll() is None:
            for child in [process.pid, *_ray_processes(process)]:
                try:
                    spent[child] = sum(psutil.Process(child).cpu_times()[:2])
                except psutil.Error:
                    continue
            done = len(re.findall(r"(?<![\w/])step:\d+ - ", log.read_text(errors="replace")))
            if done > seen:
                seen = done
                marks.append((time.perf_counter(), sum(spent.values())))
            time.sleep(0.25)
    text = log.read_text(errors="replace")
    if process.returncode != 0:
        raise RuntimeError(f"main_ppo ended with status {process.returncode}: {text[-2000:]}")
    step_seconds = [float(value) for value in re.findall(r"timing_s/step:([\d.]+)", text)]
    parts = {
        part: round(statistics.median(map(float, re.findall(rf"timing_s/{part}:([\d.]+)", text)[1:])), 2)
        for part in ("gen", "old_log_prob", "update_actor")
        if len(re.findall(rf"timing_s/{part}:([\d.]+)", text)) > 1
    }
    cpu = [after - before for (_, before), (_, after) in zip(marks, marks[1:], strict=False)]
    return {
        "step_seconds": round(statistics.median(step_seconds[1:]), 2),
        "cpu_seconds_a_step": round(statistics.median(cpu), 2),
        "steps": [round(value, 2) for value in step_seconds],
        "parts": parts,
    }


def _ray_processes(process: Any) -> list[int]:
    import psutil

    from verl_care import launch

    try:
        marker = next(value for value in psutil.Process(process.pid).environ().items() if value[0] == "RAY_TMPDIR")
    except (psutil.Error, StopIteration):
        return []
    return launch.processes_with("=".join(marker))
