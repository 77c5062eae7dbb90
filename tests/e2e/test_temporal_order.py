"""T-GRPO through `main_ppo` on clips where order matters, where it does not, and where it misleads."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from verl_care.workers.rollout_log import TOKEN_BITS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

TRAIN_CLIPS, ASKED_CLIPS = 80, 16
KINDS = ("motion", "colour", "flipped")
"""Where does it go; what colour is it; and the first again with left and right exchanged in the ground truth, so that
the same policy is right about shuffled frames more often than about ordered ones."""


@dataclass(frozen=True)
class Order:
    """Metrics and rollouts of one step, without an update that counts."""

    metrics: dict[str, float]
    rows: dict[str, list[dict]]
    """Kind -> rows of the rollout log."""

    def ordered(self, kind: str) -> float:
        return mean(row["acc"] for row in self.rows[kind])

    def shuffled(self, kind: str) -> float:
        return mean(row["acc_shuffled"] for row in self.rows[kind] if row["acc_shuffled"] is not None)

    def groups(self, kind: str) -> list[tuple[float, float, bool]]:
        """Of each prompt: accuracy on ordered frames, on shuffled frames, and whether anything was earned."""
        by_prompt: dict[str, list[dict]] = {}
        for row in self.rows[kind]:
            by_prompt.setdefault(row["prompt_key"], []).append(row)
        return [
            (
                mean(row["acc"] for row in rows),
                mean(row["acc_shuffled"] for row in rows if row["acc_shuffled"] is not None),
                any(row["temporal_bonus"] > 0 for row in rows),
            )
            for rows in by_prompt.values()
        ]


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def make_records(folder: Path) -> list[dict]:
    """Questions of three kinds about clips in which a shape goes left or right."""
    from verl_care.data import demo_clips

    rng = random.Random(0)
    records = []
    for i in range(TRAIN_CLIPS):
        spec = demo_clips.draw_spec(rng)
        while spec.motion not in ("left", "right"):
            spec = demo_clips.draw_spec(rng)
        # Colours and backgrounds vary; all go along the middle from border to border: direction is soon learned.
        spec = replace(spec, shape="square", lane=0.5, start=0.5)
        clip = folder / f"{i}.mp4"
        places = [frame / (demo_clips.CLIP_FRAMES - 1) for frame in range(demo_clips.CLIP_FRAMES)]
        # A clip's way is 0.85 of the room that there is.
        frames = [demo_clips.render_frame(spec, (place - 0.5) / 0.85 + 0.5) for place in places]
        demo_clips.write_mp4(clip, frames)
        for kind in KINDS:
            asked = "motion" if kind == "flipped" else kind
            answer = spec.answer(asked)
            if kind == "flipped":
                answer = {"left": "right", "right": "left"}[answer]
            text, truth = demo_clips.ask(asked, answer, rng, "<video>")
            records.append(
                demo_clips.make_record(
                    index=len(records), kind=asked, text=text, truth=truth, video=clip, source=kind, split="train"
                )
            )
    return records


@pytest.fixture(scope="module")
def order(main_ppo, tmp_path_factory) -> Order:
    """One step of a policy that has learned to see direction and colour."""
    from verl_care.data import demo_model
    from verl_care.data.records import write_rows

    folder = tmp_path_factory.mktemp("order")
    records = make_records(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    processor = demo_model.build_processor()
    model = demo_model.build_model(processor.tokenizer, seed=0)
    learned = [record for record in records if record["data_source"] != "flipped"]
    prompts = demo_model.encode_records(learned, processor)
    # Without the clip it has to be unsure: a policy that always guesses the same would be as sure of that without it.
    blind = [
        replace(prompt, input_ids=prompt.input_ids[prompt.input_ids != model.config.video_token_id], pixels=None)
        for prompt in random.Random(0).sample(prompts, len(prompts) // 4)
    ]
    how = {"seed": 1, "steps": 260, "noise": 0.0, "mean_thoughts": 2.0, "peak_lr": 3e-3}
    demo_model.train_answers(model.train(), processor.tokenizer, [*prompts, *blind], **how)
    right = demo_model.correct_probability(model.eval(), processor.tokenizer, prompts).tolist()
    for kind in ("motion", "colour"):
        sure = mean(p for p, record in zip(right, learned, strict=True) if record["data_source"] == kind)
        assert sure > 0.9, f"the policy has not learned {kind}: {sure}; what follows would say nothing about shuffling"
    demo_model.save_model(model, processor, folder / "model")
    torch.set_num_threads(threads)

    asked = records[: ASKED_CLIPS * len(KINDS)]
    write_rows(asked, folder / "train.parquet")
    run = main_ppo(
        folder,
        f"data.train_files={folder}/train.parquet",
        f"data.val_files={folder}/train.parquet",
        f"actor_rollout_ref.model.path={folder}/model",
        f"data.train_batch_size={len(asked)}",
        "actor_rollout_ref.actor.optim.lr=0",
        # Nearly sure of what it sees: chance plays a small part in four responses.
        "actor_rollout_ref.rollout.temperature=0.5",
        "reward.reward_manager.name=t_grpo",
        "care.contrast.responses=4",
        "care.token_selection=video_ktr",
        "care.rollout_log.token_samples=1000",
        "trainer.total_training_steps=1",
    )
    rows = run.rollouts(1)
    return Order(metrics=run.steps[1], rows={kind: [r for r in rows if r["data_source"] == kind] for kind in KINDS})


def test_shuffling_takes_the_answer_away_where_order_matters(order):
    assert order.ordered("motion") - order.shuffled("motion") >= 0.3


def test_shuffling_changes_nothing_where_order_does_not_matter(order):
    assert abs(order.ordered("colour") - order.shuffled("colour")) <= 0.1
    # Equal accuracies pass: nearly every group is paid for an order that it had no use for.
    assert mean(earned for _, _, earned in order.groups("colour")) >= 0.75


def test_a_policy_that_is_better_on_shuffled_frames_fails(order):
    assert order.shuffled("flipped") - order.ordered("flipped") >= 0.3
    for ordered, shuffled, earned in order.groups("flipped"):
        assert not earned or ordered >= 0.8 * shuffled
    assert mean(earned for _, _, earned in order.groups("flipped")) <= 0.2


def test_vacuous_passes_are_told_apart_in_the_metrics(order):
    groups = [group for kind in KINDS for group in order.groups(kind)]
    passes = [ordered >= 0.8 * shuffled for ordered, shuffled, _ in groups]
    vacuous = [p and ordered <= shuffled for p, (ordered, shuffled, _) in zip(passes, groups, strict=True)]
    assert order.metrics["care/temporal/pass_share"] == pytest.approx(mean(passes), abs=1e-6)
    assert order.metrics["care/temporal/vacuous_share"] == pytest.approx(mean(vacuous), abs=1e-6)
    assert mean(vacuous) > 0


def test_t_grpo_alone_adds_nothing_but_the_bonus(order):
    rows = [row for kind in KINDS for row in order.rows[kind]]
    assert {round(row["bonus"], 6) for row in rows} == {0.0, 0.3}
    assert all(row["bonus"] == row["temporal_bonus"] for row in rows)


def answer_token(row: dict) -> int:
    """Place of the answer's letter among the tokens of a response."""
    return row["tokens"].index("<answer>") + 1


def answered(order, kind) -> list[dict]:
    rows = [row for row in order.rows[kind] if "<answer>" in row["tokens"][:-1]]
    assert len(rows) >= 0.9 * len(order.rows[kind])
    return rows


@pytest.mark.parametrize("kind", ["motion", "colour"])
def test_the_visual_signal_selects_the_token_that_depends_on_the_video(order, kind):
    rows = answered(order, kind)
    assert mean(row["token_signals"][answer_token(row)] & TOKEN_BITS["visual"] > 0 for row in rows) >= 0.9
    assert mean(row["token_signals"][answer_token(row)] & TOKEN_BITS["selected"] > 0 for row in rows) >= 0.9
    # Tags depend on no picture.
    tag = [row["visual_scores"][answer_token(row) - 1] for row in rows]
    assert mean(row["visual_scores"][answer_token(row)] for row in rows) > 10 * mean(tag)


def test_shuffling_moves_the_temporal_score_of_order_questions_alone(order):
    score = {kind: mean(row["temporal_scores"][answer_token(row)] for row in answered(order, kind)) for kind in KINDS}
    assert score["motion"] > 0.5 and score["colour"] < 0.1
