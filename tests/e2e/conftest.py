"""Runs of verl's `main_ppo` on the CPU, each in a process of its own that leaves nothing behind."""

from __future__ import annotations

import ast
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

RUN_SECONDS = 280
"""Hard limit of one run. They take about 60 s on two free cores."""

_METRIC = re.compile(r"(?:^| - )(\S+):(np\.\w+\([^)]*\)|[^\s]+)")
_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Assets:
    """A folder with a warm-started tiny model and records of every kind."""

    folder: Path
    problem_type: dict[str, str]
    """prompt_key -> problem type."""
    medium: dict[str, str]
    """prompt_key -> "video", "image" or "text"."""


@dataclass
class Run:
    """What one `main_ppo` printed and left in its folder."""

    folder: Path
    log: Path
    steps: dict[int, dict[str, float]] = field(default_factory=dict)
    """Step -> metrics of verl's console line."""

    def rollouts(self, step: int) -> list[dict]:
        """Rows of the rollout log of one step, in an order that does not depend on the run."""
        rows = pq.read_table(self.folder / "care_rollouts" / f"{step}.parquet").to_pylist()
        return sorted(rows, key=lambda row: (row["prompt_key"], row["session"]))

    def weights(self, step: int) -> dict[str, torch.Tensor]:
        """The actor's weights saved at one step (world size 1)."""
        path = self.folder / f"global_step_{step}" / "actor" / "model_world_size_1_rank_0.pt"
        saved = torch.load(path, weights_only=False)
        return {name: getattr(weight, "_local_tensor", weight) for name, weight in saved.items()}


def parse_steps(log: Path) -> dict[int, dict[str, float]]:
    """Metrics of every `step:N - key:value - …` line of verl's console logger."""
    steps = {}
    for line in log.read_text(errors="replace").splitlines():
        line = _ESCAPE.sub("", line)
        start = line.find("step:")
        if start < 0 or "training/global_step" not in line:
            continue
        metrics = {}
        for key, text in _METRIC.findall(line[start:]):
            value = re.sub(r"np\.\w+\((.*)\)", r"\1", text)
            try:
                metrics[key] = float(ast.literal_eval(value))
            except (ValueError, SyntaxError):
                metrics[key] = float(value) if value in ("nan", "inf", "-inf") else None
        steps[int(metrics.pop("step"))] = metrics
    return steps


def _processes_of(marker: bytes) -> list[int]:
    """Processes whose environment holds `marker`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if marker in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def _kill(process: subprocess.Popen, marker: bytes) -> None:
    """Kill a run: its group, then whatever Ray started for it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
    # Ray's processes lead groups of their own; they carry the run's RAY_TMPDIR. Killing one may start no other.
    while left := _processes_of(marker):
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Assets:
    """Two records of each kind of question, and the demo's model after a short warm start."""
    import pyarrow as pa

    from verl_care.data import demo_clips, demo_model

    folder = tmp_path_factory.mktemp("assets")
    rng = random.Random(0)
    records = []
    for _ in range(3):
        for kind in (*demo_clips.VIDEO_KINDS, "image_colour", "sign", "sum"):
            index = len(records)
            spec = demo_clips.draw_spec(rng)
            media: dict[str, Path] = {}
            numbers = {}
            if kind in demo_clips.VIDEO_KINDS:
                media["video"] = folder / f"{index}.mp4"
                demo_clips.write_clip(media["video"], spec)
                answer = spec.answer(kind)
            elif kind == "sum":
                numbers = {"a": rng.randint(1, 3), "b": rng.randint(1, 3)}
                answer = str(sum(numbers.values()))
            else:
                media["image"] = folder / f"{index}.png"
                answer = rng.choice(demo_clips.SIGNS) if kind == "sign" else spec.answer(kind)
                picture = demo_clips.render_sign(answer, rng) if kind == "sign" else demo_clips.render_frame(spec, 0.5)
                picture.save(media["image"])
            placeholder = f"<{next(iter(media))}>" if media else ""
            text, truth = demo_clips.ask(kind, answer, rng, placeholder, **numbers)
            records.append(
                demo_clips.make_record(index=index, kind=kind, text=text, truth=truth, split="train", **media)
            )
    pq.write_table(pa.Table.from_pylist(records), folder / "train.parquet")
    pq.write_table(pa.Table.from_pylist(records[:9]), folder / "val.parquet")

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    processor = demo_model.build_processor()
    model = demo_model.build_model(processor.tokenizer, seed=0)
    prompts = demo_model.encode_records(records, processor)
    demo_model.warm_start(model, processor.tokenizer, prompts, seed=0, steps=120, soft_steps=60, noise=0.6, batch_size=18)
    demo_model.save_model(model, processor, folder / "model")
    torch.set_num_threads(threads)

    keys = [f"{record['data_source']}/{record['extra_info']['index']}" for record in records]
    return Assets(
        folder=folder,
        problem_type={key: r["extra_info"]["problem_type"] for key, r in zip(keys, records, strict=True)},
        medium={
            key: "video" if r["videos"] else "image" if r["images"] else "text"
            for key, r in zip(keys, records, strict=True)
        },
    )


@pytest.fixture(scope="session")
def main_ppo(assets: Assets) -> Iterator[Callable[..., Run]]:
    """Start `main_ppo` with `care_hardware=cpu` on the assets; returns when it has ended, or was killed on a signal.

    Arguments of the returned function: the run's folder, further overrides, and `kill_when`, a condition under which
    the run is killed with SIGKILL (the run must not end before).
    """
    ray_folders: list[str] = []

    def run(folder: Path, *overrides: str, kill_when: Callable[[], bool] | None = None) -> Run:
        # Short: Ray makes socket paths of it, which may have 107 characters.
        ray_folders.append(tempfile.mkdtemp(prefix="e2e", dir="/tmp"))
        marker = f"RAY_TMPDIR={ray_folders[-1]}"
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "VERL_"))}
        environ |= {"RAY_TMPDIR": ray_folders[-1], "HYDRA_FULL_ERROR": "1", "PYTHONUNBUFFERED": "1"}
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / f"run{len(list(folder.glob('run*.log')))}.log"
        command = [sys.executable, "-m", "verl.trainer.main_ppo", *_OVERRIDES, *_asset_overrides(assets, folder)]
        with open(log, "w") as out:
            process = subprocess.Popen(
                [*command, *overrides],
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environ,
                cwd=folder,
                start_new_session=True,
            )
        killed = False
        deadline = time.monotonic() + RUN_SECONDS
        try:
            while process.poll() is None:
                if kill_when is not None and kill_when():
                    killed = True
                    break
                if time.monotonic() > deadline:
                    pytest.fail(f"no end after {RUN_SECONDS} s\n{_tail(log)}")
                time.sleep(0.1)
        finally:
            _kill(process, marker.encode())
        if kill_when is None:
            assert process.returncode == 0, _tail(log)
        else:
            assert killed, "the run ended before it could be killed\n" + _tail(log)
        return Run(folder=folder, log=log, steps=parse_steps(log))

    yield run
    for path in ray_folders:
        shutil.rmtree(path, ignore_errors=True)


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:]


_OVERRIDES = [
    "+care=base",
    "+care_hardware=cpu",
    "trainer.v1.trainer_mode=care_sync",
    "reward.reward_manager.name=care",
    "reward.custom_reward_function.path=pkg://verl_care.rewards.scorer",
    "reward.custom_reward_function.name=compute_score",
    "data.custom_cls.path=pkg://verl_care.data.dataset",
    "data.custom_cls.name=CareDataset",
    "data.train_batch_size=9",
    "data.max_prompt_length=160",
    "data.max_response_length=40",
    "data.filter_overlong_prompts=false",
    "+data.seed=1",
    "algorithm.adv_estimator=grpo",
    "actor_rollout_ref.rollout.n=4",
    "actor_rollout_ref.actor.ppo_mini_batch_size=9",
    "actor_rollout_ref.actor.optim.lr=1e-3",
    "trainer.logger=[console]",
    "trainer.val_before_train=false",
    "trainer.total_epochs=10",
]


def _asset_overrides(assets: Assets, folder: Path) -> list[str]:
    return [
        f"data.train_files={assets.folder}/train.parquet",
        f"data.val_files={assets.folder}/val.parquet",
        f"actor_rollout_ref.model.path={assets.folder}/model",
        f"trainer.default_local_dir={folder}",
    ]
