"""CARE's effort against the published function's numbers, hand-worked cases and the method's invariants."""

import dataclasses
import json
import math
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from verl_care.config import STAGES, CareConfig
from verl_care.shaping import get_rule
from verl_care.shaping.base import ShapingBatch
from verl_care.shaping.care import CareRule, assign_replicas, decoupled_advantage, shape
from verl_care.shaping.competence import CompetenceState

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "care_published.json").read_text())["cases"]
COMPETENCE_OF_STAGE = {"explore_hard": 0.40, "explore": 0.67, "refine": 0.72, "concise": 0.85}


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["id"])
def test_published_function_is_reproduced(case):
    num_rows, size = len(case["accuracy"]), case["group_size"]
    out = shape(
        torch.tensor(case["accuracy"]),
        torch.tensor(case["lengths"]),
        torch.arange(num_rows) // size,
        case["competence_before"],
    )
    assert out.competence == pytest.approx(case["competence_after"], abs=1e-5)
    torch.testing.assert_close(out.pass_rate[::size], torch.tensor(case["group_pass_rate"]), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.effort_ratio, torch.tensor(case["effort_ratio"]), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.bonus, torch.tensor(case["effort_bonus"]), atol=1e-5, rtol=0)


def test_golden_cases_reach_every_stage():
    stages = {CareConfig().stage_of(case["competence_after"]) for case in GOLDEN}
    assert len(GOLDEN) == 24 and stages == set(STAGES)


def _sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_explore_hard_by_hand():
    # P: 0.99 * 0.60 + 0.01 * 0.5 = 0.599. Mean correct length 400, T_avg = 2.5 * 400 = 1000; quantile below it.
    # z = 400 / 1000 = 0.4; k = 3.0 + 0.2 * (0.7 - 0.5) + 0.3 * (0.7 - 0.599) = 3.0703; amplifier 1 + |0.5 - 0.599|.
    out = shape(torch.tensor([1.0, 0.0]), torch.tensor([400.0, 200.0]), torch.tensor([0, 0]), 0.60)
    assert out.competence == pytest.approx(0.599)
    assert out.stage == "explore_hard"
    assert float(out.effort_ratio[0]) == pytest.approx(0.4)
    assert float(out.bonus[0]) == pytest.approx(0.30 * min(0.95, _sigmoid(3.0703 * 0.4) * 1.099), abs=1e-6)
    assert float(out.bonus[1]) == 0.0


def test_concise_by_hand():
    # P: 0.99 * 0.80 + 0.01 * 1.0 = 0.802; k = -(3.0 + 0.5 * (1.0 - 0.7) + 0.3 * (0.802 - 0.7)) = -3.1806;
    # T_avg = 2.5 * 300 = 750; z = 200 / 750 and 400 / 750; amplifier 1 + 0.5 * 0.198 = 1.099.
    out = shape(torch.tensor([1.0, 1.0]), torch.tensor([200.0, 400.0]), torch.tensor([3, 3]), 0.80)
    assert out.stage == "concise"
    for row, z in enumerate((200 / 750, 400 / 750)):
        assert float(out.bonus[row]) == pytest.approx(0.20 * _sigmoid(-3.1806 * z) * 1.099, abs=1e-6)


def test_long_wrong_answers_set_the_reference_through_the_quantile():
    # No correct response: T_avg = 300. 75 % quantile of 100, 200, 4000, 4000 is 4000; 0.5 * 4000 = 2000 is larger.
    out = shape(torch.zeros(4), torch.tensor([100.0, 200.0, 4000.0, 4000.0]), torch.zeros(4, dtype=torch.long), 0.6)
    torch.testing.assert_close(out.effort_ratio, torch.tensor([0.05, 0.1, 2.0, 2.0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("competence", "stage"),
    [(0.6499, "explore_hard"), (0.65, "explore"), (0.6999, "explore"), (0.70, "refine"), (0.75, "concise")],
)
def test_a_threshold_belongs_to_the_stage_that_begins_there(competence, stage):
    assert CareConfig().stage_of(competence) == stage
    group = torch.tensor([0])
    # With a decay of 1 the competence stays what it is, so the stage used is the one asked about.
    assert shape(torch.ones(1), torch.ones(1), group, competence, CareConfig(ema_decay=1.0)).stage == stage


def _random_batch(seed, num_groups=6, size=4):
    generator = torch.Generator().manual_seed(seed)
    num_rows = num_groups * size
    accuracy = torch.rand(num_rows, generator=generator) * (torch.rand(num_rows, generator=generator) > 0.4)
    length = torch.randint(1, 900, (num_rows,), generator=generator).float()
    return accuracy, length, torch.arange(num_rows) // size, generator


@pytest.mark.parametrize("statistics", ["batch", "group"])
@pytest.mark.parametrize("competence", COMPETENCE_OF_STAGE.values())
def test_row_order_and_group_names_change_nothing(competence, statistics):
    accuracy, length, group, generator = _random_batch(0)
    config = CareConfig(statistics=statistics)
    out = shape(accuracy, length, group, competence, config)
    order = torch.randperm(len(group), generator=generator)
    renamed = torch.tensor([900, -4, 7, 12, 13, 5])[group]
    shuffled = shape(accuracy[order], length[order], renamed[order], competence, config)
    torch.testing.assert_close(shuffled.bonus, out.bonus[order])
    assert shuffled.competence == pytest.approx(out.competence)


@pytest.mark.parametrize("stage", STAGES)
def test_wrong_answers_get_nothing_and_effort_is_bounded(stage):
    accuracy, length, group, _ = _random_batch(1)
    config = CareConfig()
    out = shape(accuracy, length, group, COMPETENCE_OF_STAGE[stage], config)
    assert out.stage == stage
    assert bool((out.bonus[accuracy == 0] == 0).all())
    limit = getattr(config, stage).coefficient * config.effort_cap * accuracy
    assert bool((out.bonus <= limit + 1e-6).all())


@pytest.mark.parametrize("stage", STAGES)
def test_effort_is_monotone_in_length_as_the_stage_says(stage):
    length = torch.arange(1, 1025, 8).float()
    out = shape(torch.ones_like(length), length, torch.zeros(len(length), dtype=torch.long), COMPETENCE_OF_STAGE[stage])
    steps = out.bonus.diff()
    assert bool((steps >= -1e-7).all()) if stage.startswith("explore") else bool((steps <= 1e-7).all())
    assert float(steps.abs().max()) > 1e-4


@pytest.mark.parametrize("stage", STAGES)
def test_coefficient_zero_leaves_the_score_as_it_was(stage):
    accuracy, length, group, _ = _random_batch(2)
    silent = dataclasses.replace(getattr(CareConfig(), stage), coefficient=0.0)
    out = shape(accuracy, length, group, COMPETENCE_OF_STAGE[stage], CareConfig(**{stage: silent}))
    assert torch.equal(out.bonus, torch.zeros_like(out.bonus))


@given(
    accuracy=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=24),
    lengths=st.lists(st.integers(0, 10**6), min_size=24, max_size=24),
    groups=st.lists(st.integers(-5, 5), min_size=24, max_size=24),
    competence=st.floats(0, 1),
    statistics=st.sampled_from(["batch", "group"]),
)
@settings(deadline=None, max_examples=200)
def test_any_batch_gives_finite_bounded_numbers(accuracy, lengths, groups, competence, statistics):
    rows = len(accuracy)
    out = shape(
        torch.tensor(accuracy),
        torch.tensor(lengths[:rows], dtype=torch.float32),
        torch.tensor(groups[:rows]),
        competence,
        CareConfig(statistics=statistics),
    )
    assert 0 <= out.competence <= 1 + 1e-6
    assert bool(out.bonus.isfinite().all()) and bool((out.bonus >= 0).all()) and bool((out.bonus <= 0.285 + 1e-6).all())


def test_group_statistics_equal_a_call_for_each_group():
    accuracy, length, group, _ = _random_batch(3)
    config = CareConfig(statistics="group", ema_decay=1.0)
    out = shape(accuracy, length, group, 0.5, config)
    for g in range(int(group.max()) + 1):
        rows = group == g
        alone = shape(accuracy[rows], length[rows], group[rows], 0.5, CareConfig(ema_decay=1.0))
        torch.testing.assert_close(out.bonus[rows], alone.bonus)


def test_ema_per_prompt_remembers_prompts_not_steps():
    # Eight prompts make one published step; sixteen prompts two of them: 0.99 ** 2.
    accuracy = torch.ones(16)
    out = shape(accuracy, accuracy, torch.arange(16), 0.0, CareConfig(ema_per="prompt"))
    assert out.competence == pytest.approx(1 - 0.99**2)
    out = shape(accuracy[:8], accuracy[:8], torch.arange(8), 0.0, CareConfig(ema_per="prompt"))
    assert out.competence == pytest.approx(0.01)


def test_evicted_groups_count_in_the_competence_only():
    accuracy, length, group = torch.tensor([1.0, 0.0]), torch.tensor([100.0, 100.0]), torch.tensor([0, 0])
    plain = shape(accuracy, length, group, 0.5)
    counted = shape(accuracy, length, group, 0.5, evicted_pass_rate=torch.tensor([0.0, 0.0, 1.0]))
    # Mean pass rate 0.5 of one group; (0.5 + 0 + 0 + 1) / 4 = 0.375 of four.
    assert plain.competence == pytest.approx(0.5)
    assert counted.competence == pytest.approx(0.99 * 0.5 + 0.01 * 0.375)
    torch.testing.assert_close(counted.pass_rate, plain.pass_rate)


def test_ablations_switch_off_their_part():
    accuracy, length, group, _ = _random_batch(4)
    full = shape(accuracy, length, group, 0.4)
    no_amplifier = shape(accuracy, length, group, 0.4, CareConfig(amplifier=False))
    torch.testing.assert_close(no_amplifier.bonus, full.bonus_without_amplifier)
    assert not torch.equal(no_amplifier.bonus, full.bonus)
    fixed = shape(accuracy, length, group, 0.4, CareConfig(fixed_stage="concise"))
    assert fixed.stage == "concise"
    uncalibrated = shape(accuracy, length * 3, group, 0.4, CareConfig(calibration=False))
    torch.testing.assert_close(uncalibrated.effort_ratio, length * 3 / 300, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("accuracy", "length", "group", "named"),
    [
        ([1.5], [1.0], [0], "accuracy"),
        ([float("nan")], [1.0], [0], "accuracy"),
        ([1.0], [-1.0], [0], "length"),
        ([1.0], [float("inf")], [0], "length"),
        ([1.0, 1.0], [1.0], [0], "shape"),
        ([1.0], [1.0], [0.0], "group ids"),
    ],
)
def test_bad_input_is_named(accuracy, length, group, named):
    with pytest.raises(ValueError, match=named):
        shape(torch.tensor(accuracy), torch.tensor(length), torch.tensor(group), 0.5)


def test_empty_batch_changes_nothing():
    empty = torch.zeros(0)
    out = shape(empty, empty, torch.zeros(0, dtype=torch.long), 0.66)
    assert out.competence == 0.66 and out.bonus.shape == (0,)


def _batch(seed=5, step=1):
    accuracy, length, group, _ = _random_batch(seed)
    return ShapingBatch(
        score=accuracy + 1,
        accuracy=accuracy,
        correct=accuracy > 0.1,
        length=length,
        group=group,
        prompt_key=[f"source/{int(g)}" for g in group],
        step=step,
    )


def test_rule_equals_the_function_and_carries_its_state():
    rule, batch = get_rule("care"), _batch()
    shaped, state = rule(batch)
    out = shape(batch.accuracy, batch.length, batch.group, 0.60)
    torch.testing.assert_close(shaped.bonus, out.bonus)
    assert state == CompetenceState((out.competence,), updates=1)
    again, state = rule(batch, rule.state_from_dict(json.loads(json.dumps(state.to_dict()))))
    assert state.competence[0] == shape(batch.accuracy, batch.length, batch.group, out.competence).competence


def test_replicas_each_see_their_share_and_rows_may_move():
    rule = CareRule(config=CareConfig(competence_scope="replicas:4", statistics="group"))
    batch = _batch()
    replica = assign_replicas(batch, 4)
    assert sorted(torch.bincount(replica).tolist()) == [4, 4, 8, 8]  # 6 prompts of 4 responses on 4 replicas
    shaped, state = rule(batch)
    for r in range(4):
        rows = replica == r
        out = shape(batch.accuracy[rows], batch.length[rows], batch.group[rows], 0.60, rule.config)
        assert state.competence[r] == out.competence
        torch.testing.assert_close(shaped.bonus[rows], out.bonus)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))
    moved = dataclasses.replace(
        batch,
        **{name: getattr(batch, name)[order] for name in ("score", "accuracy", "correct", "length", "group")},
        prompt_key=[batch.prompt_key[i] for i in order],
    )
    torch.testing.assert_close(rule(moved)[0].bonus, shaped.bonus[order])


def test_state_of_another_scope_is_refused():
    state = CompetenceState((0.5,) * 8, 3).to_dict()
    with pytest.raises(ValueError, match="8 competences.*global"):
        get_rule("care").state_from_dict(state)
    with pytest.raises(ValueError, match="updates"):
        get_rule("care").state_from_dict({"competence": [0.5]})


# Beyond the paper: hysteresis, blend, decoupled effort, the clock, and a competence for each data source


@pytest.mark.parametrize(
    ("previous", "competence", "expected"),
    [
        ("explore", 0.71, "explore"),
        ("explore", 0.7201, "refine"),
        ("refine", 0.701, "refine"),
        ("refine", 0.699, "refine"),
        ("refine", 0.689, "explore"),
        ("explore_hard", 0.80, "concise"),
        ("concise", 0.30, "explore_hard"),
        (None, 0.71, "refine"),
    ],
)
def test_margins_keep_a_stage_until_the_competence_is_clear_of_its_threshold(previous, competence, expected):
    config = CareConfig(rise_margin=0.02, fall_margin=0.01)
    assert config.stage_of(competence, previous) == expected


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_without_margins_the_stage_before_does_not_matter(competences):
    config, previous = CareConfig(), None
    for competence in competences:
        assert config.stage_of(competence, previous) == config.stage_of(competence)
        previous = config.stage_of(competence)


def _steps(config, pass_rates, **extra):
    rule, state, stages = CareRule(config=config), None, []
    for step, rate in enumerate(pass_rates, start=1):
        accuracy = torch.tensor([1.0] * round(100 * rate) + [0.0] * round(100 * (1 - rate)))
        batch = ShapingBatch(
            score=accuracy,
            accuracy=accuracy,
            correct=accuracy > 0,
            length=torch.arange(100.0) + 1,
            group=torch.arange(100) // 10,
            step=step,
            **extra,
        )
        shaped, state = rule(batch, state)
        stages.append(shaped.columns["stage"][0])
    return stages, state


def test_hysteresis_stops_the_stage_from_flickering_and_survives_a_resume():
    # λ = 0: the competence is the pass rate. Around the threshold 0.75 the published stages change at every step.
    rates = [0.74, 0.76, 0.74, 0.76, 0.78, 0.76, 0.74]
    published = CareConfig(ema_decay=0.0)
    margins = dataclasses.replace(published, rise_margin=0.02)
    assert _steps(published, rates)[0] == ["refine", "concise", "refine", "concise", "concise", "concise", "refine"]
    stages, state = _steps(margins, rates)
    assert stages == ["refine", "refine", "refine", "refine", "concise", "concise", "refine"]
    assert state.stages == ("refine",)
    assert CareRule(config=margins).state_from_dict(json.loads(json.dumps(state.to_dict()))) == state
    assert "stages" not in _steps(published, rates)[1].to_dict()


def test_blended_shares_add_up_and_move_evenly():
    config = CareConfig(blend_width=0.02)
    # Halfway through the band around 0.70, from 0.68 to 0.72; and three quarters.
    assert config.stage_shares(0.70, "refine") == pytest.approx({"explore": 0.5, "refine": 0.5})
    assert config.stage_shares(0.71, "refine") == pytest.approx({"explore": 0.25, "refine": 0.75})
    assert config.stage_shares(0.60, "explore_hard") == {"explore_hard": 1.0}
    for competence in torch.linspace(0, 1, 201).tolist():
        shares = config.stage_shares(competence, config.stage_of(competence))
        assert sum(shares.values()) == pytest.approx(1) and min(shares.values()) > 0
    # Bands that overlap.
    assert sum(CareConfig(blend_width=0.1).stage_shares(0.7, "refine").values()) == pytest.approx(1)


def test_a_blend_is_the_mean_of_both_stages_and_does_not_jump():
    accuracy, length = torch.tensor([1.0, 1.0, 0.5]), torch.tensor([100.0, 400.0, 250.0])
    group = torch.tensor([0, 0, 1])
    base = CareConfig(ema_decay=1.0)
    explore, refine = (
        shape(accuracy, length, group, 0.71, dataclasses.replace(base, fixed_stage=stage)).bonus
        for stage in ("explore", "refine")
    )
    blended = shape(accuracy, length, group, 0.71, dataclasses.replace(base, blend_width=0.02)).bonus
    torch.testing.assert_close(blended, 0.25 * explore + 0.75 * refine)
    for threshold in base.thresholds:
        for config, jumps in ((base, True), (dataclasses.replace(base, blend_width=0.02), False)):
            below, above = (shape(accuracy, length, group, threshold + d, config).bonus for d in (-1e-4, 1e-4))
            assert bool((below - above).abs().max() > 2e-3) is jumps


def test_decoupled_advantages_leave_an_all_right_group_as_small_as_its_efforts():
    # Group 0, all right: efforts e and e + 0.01. Published: (r - mean) / std = -+ 0.707, whatever they differ by.
    score = torch.tensor([2.0, 2.0, 2.0, 1.0])
    effort = torch.tensor([0.10, 0.11, 0.10, 0.0])
    group = torch.tensor([0, 0, 1, 1])
    advantage = decoupled_advantage(score, effort, group, 0.5)
    torch.testing.assert_close(advantage[:2], torch.tensor([-0.01, 0.01]))
    # Group 1: score part +- 1 / sqrt(2) by the sample deviation, effort part +- 0.05 / 0.5.
    expected = torch.tensor([math.sqrt(0.5) + 0.1, -math.sqrt(0.5) - 0.1])
    torch.testing.assert_close(advantage[2:], expected, atol=1e-5, rtol=0)
    centred = decoupled_advantage(score, effort, group, 0.5, norm_by_std=False)
    torch.testing.assert_close(centred, torch.tensor([-0.005, 0.005, 0.55, -0.55]))


def test_only_the_decoupled_form_gives_advantages_of_its_own():
    batch = ShapingBatch(
        score=torch.tensor([2.0, 2.0]),
        accuracy=torch.ones(2),
        correct=torch.ones(2, dtype=torch.bool),
        length=torch.tensor([100.0, 300.0]),
        group=torch.tensor([0, 0]),
    )
    joint, _ = CareRule()(batch)
    decoupled, _ = CareRule(config=CareConfig(advantage="decoupled"))(batch)
    assert joint.advantage is None
    torch.testing.assert_close(decoupled.bonus, joint.bonus)
    half = float(joint.bonus[1] - joint.bonus[0]) / 2
    torch.testing.assert_close(decoupled.advantage, torch.tensor([-half, half]) / 0.05)


def test_the_clock_switches_at_its_step_whatever_the_competence():
    assert _steps(CareConfig(clock_step=3), [1.0] * 4)[0] == ["explore_hard"] * 2 + ["concise"] * 2
    assert _steps(CareConfig(clock_step=3), [0.0] * 4)[0] == ["explore_hard"] * 2 + ["concise"] * 2


def _source_batch(accuracy, sources, step=1):
    accuracy = torch.tensor(accuracy)
    return ShapingBatch(
        score=accuracy,
        accuracy=accuracy,
        correct=accuracy > 0.1,
        length=torch.tensor([100.0, 300.0] * (len(accuracy) // 2)),
        group=torch.arange(len(accuracy)) // 2,
        prompt_key=[f"{source}/{i // 2}" for i, source in enumerate(sources)],
        step=step,
    )


def test_each_data_source_has_a_competence_and_a_stage_of_its_own():
    config = CareConfig(competence_scope="data_source", ema_decay=0.5)
    rule = CareRule(config=config)
    shaped, state = rule(_source_batch([1.0, 1.0, 0.0, 0.0], ["mc"] * 2 + ["ground/ing"] * 2))
    assert dict(zip(state.sources, state.competence, strict=True)) == pytest.approx({"ground/ing": 0.3, "mc": 0.8})
    assert shaped.columns["stage"] == ["concise", "concise", "explore_hard", "explore_hard"]
    # Equal to two runs with one source each; a source that is absent stays where it is.
    alone, alone_state = CareRule(config=CareConfig(ema_decay=0.5))(_source_batch([1.0, 1.0], ["mc"] * 2))
    torch.testing.assert_close(shaped.bonus[:2], alone.bonus)
    shaped, later = rule(_source_batch([1.0, 0.0, 1.0, 1.0], ["mc"] * 2 + ["new"] * 2, step=2), state)
    assert dict(zip(later.sources, later.competence, strict=True)) == pytest.approx(
        {"ground/ing": 0.3, "mc": 0.65, "new": 0.8}
    )
    assert alone_state.competence == pytest.approx((0.8,))
    assert rule.state_metrics(later)["care/competence/mc"] == pytest.approx(0.65)
    assert rule.state_from_dict(json.loads(json.dumps(later.to_dict()))) == later
    with pytest.raises(ValueError, match="one competence a data source"):
        CareRule().state_from_dict(later.to_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blend_width": 0.1, "rise_margin": 0.1}, "blend_width: expected 0 together"),
        ({"clock_step": 5, "fixed_stage": "explore"}, "clock_step"),
        ({"clock_step": 0}, "clock_step"),
        ({"advantage": "apart"}, "advantage: expected joint or decoupled"),
        ({"effort_std": 0.0}, "effort_std"),
        ({"fall_margin": -0.1}, "fall_margin"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CareConfig(**options)
