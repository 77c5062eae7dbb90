"""The model of training: it follows the rule's gradient, repeats itself, and its defaults show the known dynamics."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from verl_care.replay import ReplayError, parse_rule
from verl_care.shaping import get_rule
from verl_care.simulate import (
    SENSITIVE,
    WARNING,
    Job,
    Model,
    Trajectory,
    chance_right,
    expand_sweep,
    fit_start,
    main,
    read_model,
    run_jobs,
    sensitivity_jobs,
    simulate,
    summarise,
)
from verl_care.workers.rollout_log import RolloutLog

SEEDS = (0, 1)


@pytest.fixture(scope="module")
def runs():
    """Default runs of the rules whose dynamics are known, by rule."""
    specs = {
        "care": "care",
        "none": "none",
        "band": "video_r1_band",
        "kimi": "kimi_k1_5:weight=0.1,gate=right_only",
    }
    return {name: [simulate(parse_rule(spec), seed=seed) for seed in SEEDS] for name, spec in specs.items()}


def mean_of(runs, name, figure):
    return sum(run.summary()[figure] for run in runs[name]) / len(SEEDS)


@pytest.mark.parametrize(
    ("name", "figure", "value", "within"),
    [
        # An independent simulation of the method gave these: CARE 213, 545 at step 600, 186; plain GRPO 480;
        # the band 450; a Kimi-style penalty 114.
        ("care", "length_start", 213, 0.05),
        ("care", "length_peak", 545, 0.10),
        ("care", "peak_step", 600, 0.10),
        ("care", "length_end", 186, 0.25),
        ("care", "competence_end", 0.75, 0.05),
        ("none", "length_end", 480, 0.10),
        ("band", "length_end", 450, 0.10),
        ("kimi", "length_end", 114, 0.15),
    ],
)
def test_defaults_show_the_known_dynamics(runs, name, figure, value, within):
    assert mean_of(runs, name, figure) == pytest.approx(value, rel=within)


def test_only_care_makes_a_u(runs):
    for run in runs["care"]:
        assert run.summary()["length_end"] < 0.6 * run.summary()["length_peak"]
    for name in ("none", "band"):
        for run in runs[name]:
            assert run.summary()["length_end"] > 0.9 * run.summary()["length_peak"]


def test_shortening_from_the_start_costs_accuracy(runs):
    assert mean_of(runs, "kimi", "accuracy_end") < mean_of(runs, "none", "accuracy_end") - 0.08


def test_accuracy_slips_while_care_is_concise(runs):
    for run in runs["care"]:
        assert run.summary()["accuracy_end"] < run.summary()["accuracy_best"]


def test_a_seed_gives_the_same_run_again():
    model = Model(num_steps=40)
    first = simulate(get_rule("care"), model, seed=3)
    assert simulate(get_rule("care"), model, seed=3).columns["length"] == first.columns["length"]
    assert simulate(get_rule("care"), model, seed=4).columns["length"] != first.columns["length"]


def test_without_a_learning_rate_nothing_moves():
    run = simulate(get_rule("kimi_k1_5"), Model(num_steps=200, length_rate=0, skill_rate=0))
    assert set(run.columns["skill"]) == {Model().initial_skill}
    assert run.at("length", 0.0, window=100) == pytest.approx(run.at("length", 1.0, window=100), rel=0.05)


def test_lengths_begin_at_the_stated_mean():
    run = simulate(parse_rule("none"), Model(num_steps=100, length_rate=0, skill_rate=0))
    # Cutting at the limit takes a little off the mean.
    assert run.at("length", 0.5, window=100) == pytest.approx(Model().initial_length, rel=0.03)


def test_chance_grows_with_length_and_skill_and_falls_with_difficulty():
    model = Model()
    lengths = torch.tensor([50.0, 100.0, 400.0, 760.0])
    chances = chance_right(lengths, torch.zeros(4), 0.0, model)
    assert bool((chances.diff() > 0).all())
    assert bool((chance_right(lengths, torch.zeros(4), 1.0, model) > chances).all())
    assert bool((chance_right(lengths, torch.ones(4), 0.0, model) < chances).all())
    # sigmoid(0 - 0 + gain * (1 - 1/e)) at the length scale.
    at_scale = chance_right(torch.tensor([model.length_scale]), torch.zeros(1), 0.0, model)
    assert float(at_scale) == pytest.approx(1 / (1 + math.exp(-model.length_gain * (1 - math.exp(-1)))))


def test_cut_responses_are_wrong():
    run = simulate(parse_rule("none"), Model(num_steps=5, max_length=1.5, length_spread=0.01, initial_skill=50))
    assert run.columns["cut"] == [1.0] * 5
    assert run.columns["accuracy"] == [0.0] * 5


def test_length_only_groups_are_counted():
    easy = Model(num_steps=5, initial_skill=50, length_rate=0)
    assert simulate(get_rule("kimi_k1_5"), easy).columns["length_only_groups"] == [1.0] * 5
    assert simulate(parse_rule("none"), easy).columns["length_only_groups"] == [0.0] * 5


def test_parallel_runs_equal_those_of_one_process():
    jobs = [Job(spec, Model(num_steps=20), seed) for spec in ("care", "alp:beta=1e-4") for seed in (0, 1)]
    alone = run_jobs(jobs, num_workers=1)
    together = run_jobs(jobs, num_workers=2)
    assert [run.columns["length"] for run in together] == [run.columns["length"] for run in alone]
    assert [(run.label, run.seed) for run in together] == [(job.spec, job.seed) for job in jobs]


def test_a_sweep_is_one_rule_a_value():
    assert expand_sweep("care.concise_threshold=0.75,0.8") == [
        "care:concise_threshold=0.75",
        "care:concise_threshold=0.8",
    ]
    with pytest.raises(ReplayError, match="rule.constant"):
        expand_sweep("concise_threshold=0.8")


def test_a_swept_threshold_moves_the_turn():
    model = Model(num_steps=60)
    early, late = (
        simulate(parse_rule(f"care:refine_threshold={value},concise_threshold=0.9,explore_threshold=0.1"), model)
        for value in (0.2, 0.85)
    )
    assert set(early.columns["stage"]) == {2.0} and set(late.columns["stage"]) == {1.0}


def test_sensitivity_moves_each_parameter_down_and_up():
    jobs = sensitivity_jobs("care", Model(), seeds=[0])
    assert len(jobs) == 2 * len(SENSITIVE)
    for name, low, high in zip(SENSITIVE, jobs[::2], jobs[1::2], strict=True):
        assert getattr(low.model, name) < getattr(Model(), name) < getattr(high.model, name)


def test_summary_of_a_hand_made_run():
    columns = {
        "length": [100.0] * 50 + [300.0] * 51 + [50.0] * 100,
        "accuracy": [0.5] * 100 + [0.8] * 101,
        "competence": [0.6] * 201,
    }
    summary = Trajectory("x", 0, columns).summary()
    assert summary["length_start"] == 100 and summary["length_end"] == 50
    assert summary["length_peak"] == 300 and 74 <= summary["peak_step"] <= 76
    assert summary["accuracy_end"] == pytest.approx(0.8)


def test_summaries_give_mean_and_spread_over_seeds():
    runs = [Trajectory("x", s, {"length": [v] * 9, "accuracy": [1.0] * 9, "competence": [1.0] * 9})
            for s, v in enumerate((100.0, 200.0))]  # fmt: skip
    (row,) = summarise(runs)
    assert row["length_end"] == 150 and row["length_end_std"] == pytest.approx(math.sqrt(5000))


@pytest.mark.parametrize(
    ("parameters", "message"), [(["colour=1"], "colour: no such parameter"), (["num_steps=0"], "num_steps")]
)
def test_a_wrong_parameter_is_named(parameters, message):
    with pytest.raises(ReplayError, match=message):
        read_model(parameters)


def test_json_warns_that_this_is_a_model(tmp_path, capsys):
    status = main(
        rules=["care", "kimi_k1_5"],
        parameters=["num_steps=20"],
        num_seeds=1,
        num_workers=1,
        sensitivity=True,
        figure=tmp_path / "figure.png",
        as_json=True,
    )
    shown = json.loads(capsys.readouterr().out)
    assert status == 0
    assert shown["warning"] == WARNING
    assert [row["rule"] for row in shown["rules"]] == ["care", "kimi_k1_5"]
    assert len(shown["sensitivity"]["runs"]) == 2 * len(SENSITIVE)
    assert len(shown["runs"][0]["length"]) == 20
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_warns_too_and_a_failure_is_one_line(capsys):
    assert main(rules=["none"], parameters=["num_steps=5"], num_seeds=2, num_workers=1, sensitivity=False) == 0
    assert "A model, not a training run" in capsys.readouterr().out
    assert main(rules=["nosuch"], num_seeds=1) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_a_runs_beginning_becomes_the_models(tmp_path):
    """A log drawn from one model gives that model back, up to sampling."""
    drawn = Model(prompts_per_step=32, group_size=4, initial_length=100.0, length_spread=0.3, initial_skill=0.4)
    drawn = replace(drawn, length_scale=drawn.length_scale * 100 / 208)
    generator = torch.Generator().manual_seed(0)
    log = RolloutLog(tmp_path, 2**30)
    size = drawn.prompts_per_step * drawn.group_size
    for step in range(1, 7):
        normal = torch.randn(size, generator=generator)
        length = torch.exp(math.log(100) - 0.3**2 / 2 + 0.3 * normal).round()
        difficulty = drawn.difficulty_spread * torch.randn(32, generator=generator).repeat_interleave(4)
        right = torch.rand(size, generator=generator) < chance_right(length, difficulty, drawn.initial_skill, drawn)
        columns = {
            "uid": [f"{step}-{i // 4}" for i in range(size)],
            "acc": right.float().tolist(),
            "score": right.float().tolist(),
            "length": length.long().tolist(),
        }
        log.write(step, 0, columns)
    fitted = fit_start(tmp_path, Model())
    assert (fitted.prompts_per_step, fitted.group_size) == (32, 4)
    assert fitted.initial_length == pytest.approx(100, rel=0.05)
    assert fitted.length_spread == pytest.approx(0.3, rel=0.1)
    assert fitted.initial_skill == pytest.approx(0.4, abs=0.35)
    assert fitted.length_scale / fitted.initial_length == pytest.approx(420 / 208)
    start = simulate(get_rule("care"), replace(fitted, num_steps=20), seed=0).summary()
    assert start["length_start"] == pytest.approx(100, rel=0.1)
    with pytest.raises(ReplayError, match="no rollouts"):
        fit_start(tmp_path / "nowhere", Model())
