"""Runs of verl's `main_ppo` with the recipe `care_demo`, each in a process of its own that leaves nothing behind."""

from __future__ import annotations

import ast
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf

from verl_care import launch
from verl_care.config import CareConfig, load_config
from verl_care.data import demo, demo_model
from verl_care.data.records import strip_none
from verl_care.shaping.care import shape

RUN_SECONDS = 400
"""Hard limit of one run. They take about 60 s on two free cores."""

_METRIC = re.compile(r"(?:^| - )(\S+):(np\.\w+\([^)]*\)|[^\s]+)")
_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Assets:
    """A small build of the demo's folder."""

    folder: Path
    problem_type: dict[str, str]
    """prompt_key -> problem type."""
    medium: dict[str, str]
    """prompt_key -> "video", "image" or "text"."""


@dataclass(frozen=True)
class Run:
    """What one `main_ppo` printed and left in its folder."""

    folder: Path
    log: str
    steps: dict[int, dict[str, float]]
    """Step -> metrics of verl's console line."""
    returncode: int | None
    """Exit status; None of a run that was killed."""
    gone_at: float | None = None
    """Time (monotonic) at which no process of the run was left, by itself; None where that was not looked at."""

    def rollouts(self, step: int) -> list[dict]:
        """Rows of the rollout log of one step, in an order that does not depend on the run."""
        rows = pq.read_table(self.folder / "care_rollouts" / f"{step}.parquet").to_pylist()
        return sorted(rows, key=lambda row: (row["prompt_key"], row["session"]))

    def state(self, step: int) -> dict[str, Any]:
        """CARE's state in the checkpoint of one step."""
        return json.loads((self.folder / f"global_step_{step}" / "care_state.json").read_text())["state"]

    def constants(self) -> CareConfig:
        """CARE's constants in the config that the run composed, with the recipe's own."""
        return load_config(OmegaConf.load(self.folder / "hydra" / ".hydra" / "config.yaml").care).shaping

    def replay(self, last: int) -> float:
        """Competence after the steps 1 … last, from the accuracies and lengths of the rollout log alone.

        Holds the logged bonuses against `shape` on the way.
        """
        config = self.constants()
        competence = config.initial_competence
        for step in range(1, last + 1):
            rows = self.rollouts(step)
            groups = {key: i for i, key in enumerate(sorted({row["uid"] for row in rows}))}
            out = shape(
                torch.tensor([row["acc"] for row in rows]),
                torch.tensor([row["length"] for row in rows], dtype=torch.float32),
                torch.tensor([groups[row["uid"]] for row in rows]),
                competence,
                config,
            )
            for row, bonus in zip(rows, out.bonus.tolist(), strict=True):
                assert row["bonus"] - (row["temporal_bonus"] or 0) == pytest.approx(bonus, abs=1e-5)
            competence = float(out.competence)
        return competence

    def weights(self, step: int) -> dict[str, torch.Tensor]:
        """The actor's weights saved at one step (world size 1)."""
        path = self.folder / f"global_step_{step}" / "actor" / "model_world_size_1_rank_0.pt"
        saved = torch.load(path, weights_only=False)
        return {name: getattr(weight, "_local_tensor", weight) for name, weight in saved.items()}


def parse_steps(log: str) -> dict[int, dict[str, float]]:
    """Metrics of every `step:N - key:value - …` line of verl's console logger."""
    steps = {}
    for line in log.splitlines():
        line = _ESCAPE.sub("", line)
        start = line.find("step:")
        if start < 0 or "training/global_step" not in line:
            continue
        metrics = {}
        for key, text in _METRIC.findall(line[start:]):
            value = re.sub(r"np\.\w+\((.*)\)", r"\1", text)
            try:
                metrics[key] = float(ast.literal_eval(value))
            except ValueError:
                metrics[key] = float(value)  # nan, inf
        steps[int(metrics.pop("step"))] = metrics
    return steps


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Assets:
    """Clips, images and questions of every kind, and a model with the format and some answers, but no eye for clips.

    The demo's own warm start takes most of its time over the vision tower, which no test here needs.
    """
    size = demo.Size(train_clips=36, val_clips=4, warm_start_scale=0)
    folder = demo.build_assets(folder=tmp_path_factory.mktemp("assets") / "demo", size=size)
    rows = pq.read_table(folder / "train.parquet").to_pylist()
    for row in rows:
        row |= {media: [strip_none(item) for item in row[media] or []] for media in ("videos", "images")}
    processor = demo_model.build_processor()
    model = demo_model.build_model(processor.tokenizer, seed=0)
    _teach_format(model, processor.tokenizer, demo_model.encode_records(rows, processor))
    demo_model.save_model(model, processor, folder / "model")

    keys = [f"{row['data_source']}/{row['extra_info']['index']}" for row in rows]
    return Assets(
        folder=folder,
        problem_type={key: row["extra_info"]["problem_type"] for key, row in zip(keys, rows, strict=True)},
        medium={
            key: "video" if row["videos"] else "image" if row["images"] else "text"
            for key, row in zip(keys, rows, strict=True)
        },
    )


def _teach_format(model: torch.nn.Module, tokenizer: Any, prompts: list[demo_model.Prompt]) -> None:
    """100 supervised steps, with the right answer in two cases of five."""
    rng = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    placeholders = tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|video_pad|>"])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model.train()
    for _ in range(100):
        part = rng.sample(prompts, 12)
        answers = [demo_model.noisy_answer(prompt, 0.6, rng) for prompt in part]
        texts = [demo_model.draw_response(answer, rng, 6.0) for answer in answers]
        responses = [demo_model.response_ids(tokenizer, text) for text in texts]
        batch = demo_model.collate(model, part, responses)
        mask, targets = batch.pop("response_mask")[:, 1:], batch["input_ids"][:, 1:, None]
        logits = model(**batch, use_cache=False).logits[:, :-1]
        log_z = logits.logsumexp(-1)
        # verl takes logit - log Z in float32, which rounds to a unit in the last place of log Z: keep that near 0, so
        # that what two engines disagree on is not the rounding.
        losses = log_z - logits.gather(-1, targets)[..., 0] + 0.1 * log_z**2
        # verl bans these in vLLM by masking the model's logits, so that vLLM's log-probs leave out what mass the actor
        # still gives them: next to none in a trained model, so here too.
        losses = losses + 0.1 * (logits[..., placeholders].logsumexp(-1) - log_z)
        optimizer.zero_grad()
        ((losses * mask).sum() / mask.sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    torch.set_num_threads(threads)


Watch = Callable[[int, int], bool]
"""Called over and over with the driver's process id and the last step that verl has printed (0 before the first); True
kills the run (SIGKILL, all of it)."""


@pytest.fixture(scope="session")
def main_ppo(assets: Assets) -> Iterator[Callable[..., Run]]:
    """A function that runs `main_ppo` in a folder, with further overrides, until it ends or `watch` has it killed.

    It fails after `seconds`, and, with `must_succeed`, where the run does. With `gone_within` it waits so many seconds
    for the processes of a run that has ended by itself, and fails where some are left.
    """

    def run(
        folder: Path,
        *overrides: str,
        watch: Watch | None = None,
        must_succeed: bool = True,
        environ: dict[str, str] | None = None,
        seconds: float = RUN_SECONDS,
        gone_within: float | None = None,
    ) -> Run:
        log = folder / f"run{len(list(folder.glob('run*.log')))}.log"
        command = [*_OVERRIDES, f"trainer.default_local_dir={folder}", *overrides]
        environ = {"VERL_CARE_DEMO_DIR": str(assets.folder), "HYDRA_FULL_ERROR": "1", **(environ or {})}
        deadline = time.monotonic() + seconds
        killed, last_step, line, gone_at = False, 0, "", None
        running = launch.main_ppo(command, log=log, cwd=folder, environ=environ)
        with running as process, open(log, errors="replace") as printed:
            marker = _marker(process.pid)
            while process.poll() is None and not killed:
                if time.monotonic() > deadline:
                    pytest.fail(f"no end after {seconds} s\n{log.read_text()[-4000:]}")
                whole_lines, _, line = (line + printed.read()).rpartition("\n")
                last_step = max([last_step, *parse_steps(whole_lines)])
                killed = watch is not None and watch(process.pid, last_step)
                # Saving takes a tenth of a second: one who waits for it has to look often.
                time.sleep(0.1 if watch is None else 0.02)
            if gone_within is not None and not killed:
                gone_at = _wait_until_gone(marker, gone_within)
        text = log.read_text(errors="replace")
        if must_succeed and not killed:
            assert process.returncode == 0, text[-4000:]
        returncode = None if killed else process.returncode
        return Run(folder=folder, log=text, steps=parse_steps(text), returncode=returncode, gone_at=gone_at)

    yield run


def _marker(driver: int) -> str:
    """What all processes of a run have in their environment, which is not there before the first has begun."""
    while "RAY_TMPDIR" not in (environ := psutil.Process(driver).environ()):
        time.sleep(0.01)
    return f"RAY_TMPDIR={environ['RAY_TMPDIR']}"


RAY_AGENTS = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}
"""They hold nothing of the run; without their head node they look for it for a minute
(`gcs_rpc_server_reconnect_timeout_s`) before they end."""


def _wait_until_gone(marker: str, seconds: float) -> float:
    """Waits until no process but Ray's agents has `marker` in its environment; the time at which that was so."""
    deadline = time.monotonic() + seconds
    while left := [title for pid in launch.processes_with(marker) if (title := _title(pid)) not in {*RAY_AGENTS, None}]:
        if time.monotonic() > deadline:
            pytest.fail(f"{seconds} s after the run's end there are still {left}")
        time.sleep(0.1)
    return time.monotonic()


def _title(pid: int) -> str | None:
    """First word of a process's command line; None once it has ended."""
    try:
        return next(iter(psutil.Process(pid).cmdline()), "")
    except psutil.Error:
        return None


@pytest.fixture(scope="session")
def kill_worker() -> Callable[[int, str], None]:
    """A function that kills (SIGKILL) the one Ray worker of a run whose title holds a name."""

    def kill(driver: int, name: str) -> None:
        workers = []
        for process in psutil.Process(driver).children(recursive=True):
            try:
                if name in " ".join(process.cmdline()):
                    workers.append(process)
            except psutil.Error:
                continue  # It ends just now.
        assert len(workers) == 1, workers
        workers[0].kill()

    return kill


_OVERRIDES = [
    "+recipe@_global_=care_demo",
    "actor_rollout_ref.rollout.n=4",
    "data.max_response_length=40",
    "trainer.val_before_train=false",
    "trainer.test_freq=-1",
    "trainer.save_freq=-1",
    "hydra.run.dir=hydra",
]
