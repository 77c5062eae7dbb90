"""Every length rule: worked values, invariants, its stated properties by random search, and its state."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_care.shaping import get_rule, get_rule_class, list_rules
from verl_care.shaping.base import ShapingBatch
from verl_care.shaping.grpo_lead import compute_difficulty_weight
from verl_care.shaping.laser_d import choose_targets

CASES = runpy.run_path(str(Path(__file__).with_name("rule_cases.py")))
GROUPS = CASES["GROUPS"]

# Constants that a rule has no default for.
REQUIRED = {"alp": {"beta": 1e-3}, "laser": {"target_length": 4096}, "cosine": {"max_length": 16384}}

# Rules whose bonus depends on other prompts of the batch, by design.
BATCH_SCOPE = {"care", "grpo_lambda", "short_rl"}

PUBLISHED = {
    "kimi_k1_5", "soft_overlong", "l1_exact", "l1_max", "efficient_reasoning", "o1_pruner", "alp", "laser", "laser_d",
    "laser_de", "shorter_better", "grpo_lead", "hapo", "short_rl", "diet", "adapt_think", "smart_thinker",
    "linear_pass_rate", "group_relative", "video_r1_band", "cosine", "vision_think", "a_dlp", "pixel_think",
    "grpo_lambda", "care", "gr3", "reasoning_length", "length_outlier", "overlong_pass_rate", "context_cost",
}  # fmt: skip


def build(name, **constants):
    return get_rule(name, **{**REQUIRED.get(name, {}), **constants})


def make_batch(lengths, correct, group=None, prompt_key=(), step=0, **extra):
    correct = torch.tensor(correct, dtype=torch.bool)
    return ShapingBatch(
        score=correct.float(),
        accuracy=correct.float(),
        correct=correct,
        length=torch.tensor(lengths, dtype=torch.float32),
        group=torch.zeros(len(lengths), dtype=torch.int64) if group is None else torch.as_tensor(group),
        prompt_key=prompt_key,
        step=step,
        extra={key: torch.tensor(value, dtype=torch.float32) for key, value in extra.items()},
    )


def random_batch(seed, num_groups=16, max_length=20000.0, step=0, flags_by_group=False):
    """Groups of 2 to 8 with every share of right answers, lengths over several orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)

    def rand(size):
        return torch.rand(size, generator=generator)

    sizes = torch.randint(2, 9, (num_groups,), generator=generator)
    group = torch.repeat_interleave(torch.arange(num_groups), sizes)
    scale = max_length ** rand(num_groups)
    length = (scale[group] * (0.2 + 1.8 * rand(len(group)))).round().clamp(1, max_length)
    kind = torch.randint(0, 4, (num_groups,), generator=generator)
    right_share = torch.tensor([0.0, 1.0, 0.5, 0.9])[kind]
    correct = rand(len(group)) < right_share[group]
    flags = rand(num_groups)[group] if flags_by_group else rand(len(group))
    return ShapingBatch(
        score=correct.float(),
        accuracy=correct.float(),
        correct=correct,
        length=length,
        group=group,
        prompt_key=[f"source/{g}" for g in group.tolist()],
        step=step,
        extra={
            "target_length": (scale * (0.5 + rand(num_groups)))[group],
            "ref_length": (scale * (0.5 + rand(num_groups)))[group],
            "ref_accuracy": rand(num_groups)[group],
            "no_think": (flags > 0.5).float(),
            "direct": (flags > 0.7).float(),
        },
    )


def expect(bonus, values):
    torch.testing.assert_close(bonus, torch.tensor(values, dtype=torch.float32), rtol=0, atol=2e-6)


def worked(table):
    return [
        pytest.param(*case[:-1], group, case[-1][group], id=f"{case[0]}-{case[1]}-{group}")
        for case in table
        for group in case[-1]
    ]


def test_all_published_rules_are_there():
    assert set(list_rules()) >= PUBLISHED


@pytest.mark.parametrize(("name", "constants", "extra", "group", "values"), worked(CASES["STATELESS"]))
def test_worked_values(name, constants, extra, group, values):
    lengths, correct = GROUPS[group]
    shaped, _ = get_rule(name, **constants)(make_batch(lengths, correct, **extra))
    expect(shaped.bonus, values)


@pytest.mark.parametrize(("name", "constants", "state", "step", "group", "values"), worked(CASES["WITH_STATE"]))
def test_worked_values_with_state_or_step(name, constants, state, step, group, values):
    lengths, correct = GROUPS[group]
    rule = get_rule(name, **constants)
    batch = make_batch(lengths, correct, prompt_key=["prompt"] * 4, step=step)
    shaped, _ = rule(batch, rule.state_from_dict(state))
    expect(shaped.bonus, values)


@pytest.mark.parametrize(
    ("name", "constants", "extra", "bonuses"), [case for case in CASES["STATELESS"] if case[0] not in BATCH_SCOPE]
)
def test_groups_of_one_batch_do_not_mix(name, constants, extra, bonuses):
    """All groups of a case in one batch, members interleaved."""
    names = list(bonuses)
    columns = [(GROUPS[n][0][i], GROUPS[n][1][i], g, bonuses[n][i]) for i in range(4) for g, n in enumerate(names)]
    lengths, correct, group, values = zip(*columns, strict=True)
    extra = {key: [value[i] for i in range(4) for _ in names] for key, value in extra.items()}
    shaped, _ = get_rule(name, **constants)(make_batch(lengths, correct, group, **extra))
    expect(shaped.bonus, values)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10_000), step=st.integers(0, 60))
def test_row_order_does_not_matter(name, seed, step):
    rule = build(name)
    batch = random_batch(seed, num_groups=6, step=step)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed + 1))
    shuffled = ShapingBatch(
        score=batch.score[order],
        accuracy=batch.accuracy[order],
        correct=batch.correct[order],
        length=batch.length[order],
        group=batch.group[order],
        prompt_key=[batch.prompt_key[i] for i in order.tolist()],
        step=step,
        extra={key: value[order] for key, value in batch.extra.items()},
    )
    straight, state = rule(batch)
    permuted, permuted_state = rule(shuffled)
    torch.testing.assert_close(permuted.bonus, straight.bonus[order], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(rule(batch, permuted_state)[0].bonus, rule(batch, state)[0].bonus, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(PUBLISHED - BATCH_SCOPE))
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10_000), keep=st.integers(1, 5))
def test_other_groups_do_not_matter(name, seed, keep):
    rule = build(name)
    batch = random_batch(seed, num_groups=6)
    mask = batch.group < keep
    whole, _ = rule(batch)
    part, _ = rule(batch.select(mask))
    torch.testing.assert_close(part.bonus, whole.bonus[mask], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
@pytest.mark.parametrize("correct", [[1, 1, 1], [0, 0, 0], [1, 0, 0], [1], [0]])
@pytest.mark.parametrize("lengths", [[0, 0, 0], [0, 1, 50000], [7, 7, 7]])
def test_no_batch_gives_nan_or_infinity(name, correct, lengths):
    size = len(correct)
    extra = {"target_length": 0.0, "ref_length": 0.0, "ref_accuracy": 0.0, "no_think": 1.0, "direct": 1.0}
    batch = make_batch(
        lengths[:size], correct, prompt_key=["p"] * size, **{key: [value] * size for key, value in extra.items()}
    )
    rule = build(name)
    shaped, state = rule(batch)
    again, _ = rule(batch, state)
    assert bool(shaped.bonus.isfinite().all()) and bool(again.bonus.isfinite().all())


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_an_empty_batch_changes_nothing(name):
    rule = build(name)
    state = rule.initial_state()
    empty = make_batch([], [], **{key: [] for key in rule.properties.needs})
    shaped, after = rule(empty, state)
    assert shaped.bonus.shape == (0,)
    assert after == state


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_equal_lengths_and_verdicts_get_equal_bonuses(name):
    rule, state = build(name), None
    for seed in range(5):
        batch = random_batch(seed, num_groups=8, flags_by_group=True)
        twice = ShapingBatch(
            score=batch.score.repeat(2),
            accuracy=batch.accuracy.repeat(2),
            correct=batch.correct.repeat(2),
            length=batch.length.repeat(2),
            group=batch.group.repeat(2),
            prompt_key=list(batch.prompt_key) * 2,
            extra={key: value.repeat(2) for key, value in batch.extra.items()},
        )
        shaped, state = rule(twice, state)
        first, second = shaped.bonus.chunk(2)
        # Vector and scalar code paths of one kernel differ in the last bit.
        torch.testing.assert_close(first, second, rtol=0, atol=1e-6)


def has_pair_in_group(group, rows, differs):
    """Whether two of the rows share a group and ``differs`` of them, (N, N), holds."""
    pairs = differs & (group[:, None] == group[None, :]) & rows[:, None] & rows[None, :]
    return bool(pairs.any())


def search(name, found, flags_by_group, rounds=25):
    """Whether a long random run of the rule holds a batch for which ``found(batch, bonus)`` is true."""
    rule, state = build(name), None
    for seed in range(rounds):
        # Steps start over so that an annealed rule is seen at work; prompts come back, as they do over epochs.
        batch = random_batch(seed, num_groups=24, step=seed % 20, flags_by_group=flags_by_group)
        shaped, state = rule(batch, state)
        if found(batch, shaped.bonus):
            return True
    return False


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_wrong_answers_are_ranked_by_length_as_stated(name):
    def found(batch, bonus):
        differs = (bonus[:, None] - bonus[None, :]).abs() > 1e-6
        return has_pair_in_group(batch.group, ~batch.correct, differs)

    assert search(name, found, flags_by_group=True) == get_rule_class(name).properties.ranks_wrong_by_length


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_groups_that_are_all_right_get_a_signal_as_stated(name):
    def found(batch, bonus):
        share = torch.zeros(24).index_add_(0, batch.group, batch.correct.float()) / torch.bincount(batch.group)
        differs = (bonus[:, None] - bonus[None, :]).abs() > 1e-6
        return has_pair_in_group(batch.group, (share == 1)[batch.group], differs)

    assert search(name, found, flags_by_group=False) == get_rule_class(name).properties.signal_when_all_right


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_right_answers_fall_below_wrong_ones_as_stated(name):
    def found(batch, bonus):
        total = batch.score + bonus
        below = (total[:, None] < total[None, :] - 1e-4) & batch.correct[:, None] & ~batch.correct[None, :]
        return has_pair_in_group(batch.group, torch.ones_like(batch.correct), below)

    assert search(name, found, flags_by_group=True) == get_rule_class(name).properties.right_below_wrong


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_run_resumed_from_its_saved_state_goes_on_as_if_never_stopped(name):
    rule = build(name)
    batches = [random_batch(seed, num_groups=6, step=seed) for seed in range(30)]
    state, bonuses = None, []
    for batch in batches:
        shaped, state = rule(batch, state)
        bonuses.append(shaped.bonus)
    half = None
    for batch in batches[:15]:
        _, half = rule(batch, half)
    resumed = build(name).state_from_dict(json.loads(json.dumps(half.to_dict())))
    for batch, bonus in zip(batches[15:], bonuses[15:], strict=True):
        shaped, resumed = rule(batch, resumed)
        torch.testing.assert_close(shaped.bonus, bonus, rtol=0, atol=0)
    assert resumed == state


@pytest.mark.parametrize("name", ["a_dlp", "hapo", "laser_d", "laser_de", "short_rl", "care"])
def test_a_foreign_state_is_refused(name):
    with pytest.raises(ValueError, match="state"):
        build(name).state_from_dict({"something": 1})


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_shaping_leaves_the_batch_alone(name):
    batch = random_batch(3)
    before = {key: getattr(batch, key).clone() for key in ("score", "accuracy", "correct", "length", "group")}
    build(name)(batch)
    for key, value in before.items():
        assert torch.equal(getattr(batch, key), value)


@pytest.mark.parametrize("name", sorted(PUBLISHED - {"care"}))
def test_gate_right_only_silences_wrong_answers_and_nothing_else(name):
    batch = random_batch(5)
    every, _ = build(name)(batch)
    gated, _ = build(name, gate="right_only")(batch)
    assert torch.equal(gated.bonus[batch.correct], every.bonus[batch.correct])
    assert not bool(gated.bonus[~batch.correct].any())


@pytest.mark.parametrize(
    ("name", "needed"), [("l1_exact", "target_length"), ("o1_pruner", "ref_length"), ("vision_think", "direct")]
)
def test_a_missing_column_is_named(name, needed):
    with pytest.raises(ValueError, match=needed):
        build(name)(make_batch([1, 2], [1, 0]))


def test_a_column_of_another_length_is_named():
    with pytest.raises(ValueError, match=r"extra\.target_length: expected shape \(2,\)"):
        build("l1_exact")(make_batch([1, 2], [1, 0], target_length=[1]))


@pytest.mark.parametrize(
    ("name", "constants", "message"),
    [
        ("alp", {}, "alp.*beta"),
        ("laser", {}, "laser.*target_length"),
        ("cosine", {}, "cosine.*max_length"),
        ("alp", {"gamma": 1}, "alp.*gamma"),
        ("soft_overlong", {"buffer": 0}, "buffer: expected a number > 0; got 0"),
        ("hapo", {"form": "square"}, "form: expected one of"),
        ("kimi_k1_5", {"gate": "left"}, "gate: expected one of"),
    ],
)
def test_a_wrong_constant_is_named(name, constants, message):
    with pytest.raises(ValueError, match=message):
        get_rule(name, **constants)


def test_hapo_needs_prompt_keys():
    with pytest.raises(ValueError, match="prompt keys"):
        build("hapo")(make_batch([1, 2], [1, 0]))


def test_hapo_remembers_the_shortest_right_length_after_scoring():
    rule = build("hapo")
    lengths, correct = GROUPS["A"]
    shaped, state = rule(make_batch(lengths, correct, prompt_key=["p"] * 4))
    expect(shaped.bonus, [0, 0, 0, 0])
    assert state.to_dict() == {"shortest": {"p": 100.0}}
    _, state = rule(make_batch(*GROUPS["E"], prompt_key=["p"] * 4), state)
    assert state.to_dict() == {"shortest": {"p": 100.0}}
    _, state = rule(make_batch(*GROUPS["B"], prompt_key=["q"] * 4), state)
    assert state.to_dict() == {"shortest": {"p": 100.0}}


def test_a_dlp_raises_its_price_by_the_accuracy_above_the_reference():
    # 0.001 + 0.001 * (0.75 - 0.62)
    _, state = build("a_dlp")(make_batch(*GROUPS["A"]))
    assert state.price == pytest.approx(0.00113)
    # 0.00113 + 0.01 * (0 - 0.62) < 0
    _, state = build("a_dlp", rate=0.01)(make_batch(*GROUPS["B"]), state)
    assert state.price == 0


def test_short_rl_keeps_the_best_accuracy():
    rule = build("short_rl")
    _, state = rule(make_batch(*GROUPS["A"]))
    assert state.best_accuracy == 0.75
    _, state = rule(make_batch(*GROUPS["B"]), state)
    assert state.best_accuracy == 0.75


def test_laser_takes_the_shortest_target_that_covers_one_expected_right_answer():
    # 8 a group: bands expect 5, 2 and 1 right answers; coverage 1/5, 1/2 and all of them are needed.
    histogram = ((1, 3, 1, 0), (0, 1, 1, 0), (1, 1, 1, 1))
    assert choose_targets(histogram, (100.0, 200.0, 300.0), group_size=8) == (100.0, 200.0, 300.0)
    assert choose_targets(((0, 0, 0, 0),) * 3, (100.0, 200.0, 300.0), group_size=8) == (300.0,) * 3


def test_laser_d_refreshes_its_targets_from_the_batches_it_saw():
    rule = build("laser_d", grid_low=100, grid_high=400, grid_step=100, refresh_steps=2, group_size=4)
    batch = make_batch(*GROUPS["C"])
    _, state = rule(batch)
    assert state.targets == (400.0,) * 3
    assert state.histogram[0] == (1, 1, 1, 1, 0)
    _, state = rule(batch, state)
    # Band high expects 2 of 4: half of the right answers lie within 200; the other bands saw none.
    assert state.targets == (200.0, 400.0, 400.0)
    assert state.updates == 0
    shaped, _ = rule(batch, state)
    expect(shaped.bonus, [0.5, 0.5, 0, 0])


def test_laser_d_puts_two_of_three_right_into_the_high_band():
    rule = build("laser_d")
    state = rule.state_from_dict({"targets": [150, 250, 400], "histogram": [[0] * 14] * 3, "updates": 0})
    shaped, _ = rule(make_batch([150, 151, 9], [1, 1, 0]), state)
    expect(shaped.bonus, [0.5, 0, 0])
    shaped, _ = rule(make_batch([250, 251, 9], [1, 0, 0]), state)
    expect(shaped.bonus, [0.5, 0, 0])


def test_laser_de_does_not_pay_for_repetition():
    rule = build("laser_de")
    state = rule.state_from_dict({"targets": [150, 250, 400], "histogram": [[0] * 14] * 3, "updates": 0})
    shaped, _ = rule(make_batch(*GROUPS["A"], repetitive=[0, 0, 1, 0]), state)
    expect(shaped.bonus, [0.5, 0, 0, 0])


def test_grpo_lambda_reaches_only_the_best_solved_groups():
    lengths = [100, 200] * 5
    correct = [1, 0, 1, 1, 0, 0, 1, 0, 1, 0]
    group = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    shaped, _ = build("grpo_lambda", alpha=0.1)(make_batch(lengths, correct, group))
    # z is -1 and 1 in group 1: -0.1 * sigmoid(-1), -0.1 * sigmoid(1).
    expect(shaped.bonus, [0, 0, -0.026894, -0.073106, 0, 0, 0, 0, 0, 0])
    shaped, _ = build("grpo_lambda", alpha=0.1, top_share=0.21)(make_batch(lengths, correct, group))
    assert int((shaped.bonus != 0).sum()) == 3


def test_grpo_lead_weighs_advantages_by_difficulty():
    weights = compute_difficulty_weight(torch.tensor([0.75, 0.25, 1.0, 0.0, 0.5]))
    expect(weights, [0.95, 1.492638, 0.483444, 1.499392, 1.416556])


def test_diet_draws_its_targets_below_the_error_rate_and_again_the_same():
    rule = build("diet", form="target", anneal_steps=None)
    batch = random_batch(11, num_groups=64)
    first, _ = rule(ShapingBatch(**{**batch.__dict__, "extra": {}}))
    second, _ = rule(ShapingBatch(**{**batch.__dict__, "extra": {}}))
    other_step, _ = rule(ShapingBatch(**{**batch.__dict__, "extra": {}, "step": 1}))
    assert torch.equal(first.bonus, second.bonus)
    assert not torch.equal(first.bonus, other_step.bonus)
