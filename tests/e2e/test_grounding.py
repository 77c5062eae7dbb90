"""Temporal-RLT's recipe through `main_ppo`: three kinds of questions in one batch, and the reward rises."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import fmean

import pytest

from verl_care import launch
from verl_care.data import grounding_clips
from verl_care.report.curves import Curve, read_metrics

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

STEPS, WINDOW = 12, 3
ANSWERS = 4
"""To each held-out question."""
SEED = 0
RUN_SECONDS = 600


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Folder of a whole run, with metrics.jsonl, rollouts/ and the clips."""
    folder: Path = tmp_path_factory.mktemp("grounding")
    assets = folder / "data" / "temporal_rlt"
    grounding_clips.build_folder(assets, seed=SEED)
    command = [
        "+recipe@_global_=temporal_rlt",
        "care_hardware=cpu",
        f"actor_rollout_ref.model.path={assets}/model",
        f"data.seed={SEED}",
        f"actor_rollout_ref.rollout.custom.seed={SEED}",
        "data.max_prompt_length=160",
        "data.max_response_length=48",
        # Published for three billion parameters; this policy has half a million.
        "actor_rollout_ref.actor.optim.lr=1e-3",
        f"trainer.total_training_steps={STEPS}",
        "trainer.val_before_train=true",
        "trainer.test_freq=1000",
        "trainer.save_freq=-1",
        # What training raises is how surely the policy answers, which the recipe's greedy answers do not show.
        f"actor_rollout_ref.rollout.val_kwargs.n={ANSWERS}",
        "actor_rollout_ref.rollout.val_kwargs.do_sample=true",
        "actor_rollout_ref.rollout.val_kwargs.temperature=1.0",
        "trainer.logger=[console,file]",
        f"trainer.rollout_data_dir={folder}/rollouts",
        f"trainer.default_local_dir={folder}",
        f"hydra.run.dir={folder}/hydra",
    ]
    log = folder / "run.log"
    environ = {"VERL_CARE_DATA_DIR": str(assets.parent), "VERL_FILE_LOGGER_PATH": str(folder / "metrics.jsonl")}
    with launch.main_ppo(command, log=log, cwd=folder, environ=environ) as process:
        assert process.wait(RUN_SECONDS) == 0, log.read_text()[-4000:]
    return folder


@pytest.fixture(scope="module")
def curve(run) -> Curve:
    return read_metrics(run / "metrics.jsonl")


def test_the_reward_rises(curve):
    reward = curve.series("critic/score/mean")[1]
    assert len(reward) == STEPS
    assert fmean(reward[-WINDOW:]) >= fmean(reward[:WINDOW]) + 0.1


@pytest.mark.parametrize("kind", grounding_clips.KINDS)
def test_each_kind_of_question_gains_on_held_out_clips(curve, kind):
    """Mean IoU for times alone, accuracy for the option, the weighted mean of both for grounded QA."""
    before, after = curve.series(f"val-core/{grounding_clips.DATA_SOURCE}_{kind}/acc/mean@{ANSWERS}")[1]
    assert after >= before + 0.15


ANSWER = re.compile(r"<think>[^<]*</think> <answer> (?:([A-D]) ?)?(?:; )?(?:(\d) to (\d) )?</answer>")


def expected_score(answered: re.Match, gold: re.Match) -> float:
    """Half for the format; the other half is shared by what is asked for, IoU counted in whole seconds."""
    parts = []
    if gold[1]:
        parts.append(float(answered[1] == gold[1]))
    if gold[2]:
        ours, theirs = (set(range(int(match[2]), int(match[3]))) for match in (answered, gold))
        parts.append(len(ours & theirs) / len(ours | theirs))
    return 0.5 + 0.5 * fmean(parts)


def test_every_batch_mixes_the_kinds_and_is_scored_by_the_recipes_weights(run):
    """IoU and format by halves, as published; and the shares that are ours for the other two."""
    for step in range(1, STEPS + 1):
        kinds, checked = set(), 0
        for line in (run / "rollouts" / f"{step}.jsonl").read_text().splitlines():
            row = json.loads(line)
            gold = ANSWER.fullmatch(f"<think></think> <answer> {row['gts'].replace(';', ' ;')} </answer>")
            answered = ANSWER.fullmatch(row["output"])
            kinds.add((gold[1] is not None, gold[2] is not None))
            if answered and [bool(part) for part in answered.groups()] == [bool(part) for part in gold.groups()]:
                if not gold[2] or int(answered[2]) < int(answered[3]):
                    assert row["score"] == pytest.approx(expected_score(answered, gold), abs=1e-6)
                    checked += 1
        assert len(kinds) == len(grounding_clips.KINDS)
        assert checked >= 64
