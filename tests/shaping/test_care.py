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
from verl_care.shaping.care import CareRule, assign_replicas, shape
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
