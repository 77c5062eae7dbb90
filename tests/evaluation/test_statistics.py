import math
import statistics as standard
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_care.evaluation import statistics
from verl_care.evaluation.statistics import Unit


def units_of(values, clusters=None, paths=None):
    clusters = clusters or [str(n) for n in range(len(values))]
    paths = paths or [()] * len(values)
    rows = enumerate(zip(values, clusters, paths, strict=True))
    return [Unit(name=str(n), value=v, cluster=c, path=p) for n, (v, c, p) in rows]


paths = st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"))


@given(st.lists(st.tuples(st.integers(0, 4), paths), min_size=1, max_size=30))
def test_groups_are_averaged_from_the_inside_out(rows):
    units = units_of([value / 4 for value, _ in rows], paths=[path for _, path in rows])
    inner = {path: standard.mean(v / 4 for v, p in rows if p == path) for path in {path for _, path in rows}}
    outer = {a: standard.mean(mean for (first, _), mean in inner.items() if first == a) for a, _ in inner}
    assert statistics.group_mean(units) == pytest.approx(standard.mean(outer.values()))


def test_without_units_there_is_no_mean():
    assert math.isnan(statistics.group_mean([]))


def test_paths_of_several_lengths_are_refused():
    with pytest.raises(ValueError, match="paths of one length"):
        statistics.group_mean(units_of([1.0, 0.0], paths=[("a",), ()]))


def plain_bootstrap(units, resamples, seed):
    """The same draws of clips, spelled out: each drawn clip brings its units along, once for each time it is drawn."""
    clusters = sorted({unit.cluster for unit in units})
    scores = []
    for counts in statistics.draw_clusters(len(clusters), resamples, seed):
        drawn = [u for name, count in zip(clusters, counts, strict=True) for _ in range(count) for u in units
                 if u.cluster == name]  # fmt: skip
        scores.append(statistics.group_mean(units_of([u.value for u in drawn], paths=[u.path for u in drawn])))
    return scores


@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from("uvw"), paths), min_size=1, max_size=12))
def test_the_bootstrap_draws_clips_with_all_their_questions(rows):
    units = units_of([float(v) for v, _, _ in rows], [c for _, c, _ in rows], [p for _, _, p in rows])
    found = statistics.bootstrap(units, resamples=20, seed=3)
    if len({unit.cluster for unit in units}) == 1:
        assert math.isnan(found.low) and math.isnan(found.high)
        return
    low, high = np.quantile(plain_bootstrap(units, 20, 3), [0.025, 0.975])
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.value == pytest.approx(statistics.group_mean(units))


def test_questions_about_one_clip_widen_the_interval():
    values = [1.0] * 50 + [0.0] * 50
    alone = statistics.bootstrap(units_of(values))
    # The same answers, all right in five clips and all wrong in five others.
    together = statistics.bootstrap(units_of(values, [str(n // 10) for n in range(100)]))
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for number in range(200):
        units = units_of((rng.random(80) < 0.6).astype(float).tolist())
        found = statistics.bootstrap(units, resamples=300, seed=number)
        covered += found.low <= 0.6 <= found.high
    # 95 % of 200 is 190; a binomial of that share falls below 178 once in ten thousand draws.
    assert covered >= 178


def test_a_paired_difference_of_equal_runs_is_exactly_zero():
    units = units_of([1.0, 0.0, 1.0, 0.5])
    found = statistics.paired_bootstrap(units, list(reversed(units)))
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0) and found.holds_zero


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.sampled_from("uvwx")), min_size=2, max_size=20))
def test_a_paired_difference_is_the_bootstrap_of_differences(rows):
    clusters = [c for _, _, c in rows]
    ours, theirs = (units_of([float(row[side]) for row in rows], clusters) for side in (0, 1))
    found = statistics.paired_bootstrap(ours, theirs, resamples=50, seed=1)
    single = statistics.bootstrap(units_of([float(a) - float(b) for a, b, _ in rows], clusters), resamples=50, seed=1)
    assert found.value == pytest.approx(single.value)
    assert [found.low, found.high] == pytest.approx([single.low, single.high], nan_ok=True)


def test_runs_of_other_questions_are_refused():
    with pytest.raises(ValueError, match="both runs must have the same ones"):
        statistics.paired_bootstrap(units_of([1.0, 0.0]), units_of([1.0]))


def test_a_clear_gain_is_told_from_none():
    gain = statistics.paired_bootstrap(units_of([1.0] * 60), units_of([1.0] * 30 + [0.0] * 30))
    assert gain.value == 0.5 and not gain.holds_zero
    chance = statistics.paired_bootstrap(units_of([1.0, 0.0] * 30), units_of([0.0, 1.0] * 29 + [0.0, 0.0]))
    assert chance.holds_zero


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40))
def test_mcnemar_against_the_binomial_distribution(rows):
    right, baseline = ({str(n): row[side] for n, row in enumerate(rows)} for side in (0, 1))
    found = statistics.mcnemar(right, baseline)
    b, c = sum(x and not y for x, y in rows), sum(y and not x for x, y in rows)
    assert (found["gained"], found["lost"]) == (b, c)
    pmf = [Fraction(math.comb(b + c, k), 2 ** (b + c)) for k in range(b + c + 1)]
    # Two-sided exact test of a symmetric distribution: all outcomes at most as likely as the one seen.
    expected = sum(p for p in pmf if p <= pmf[b])
    assert found["p"] == pytest.approx(float(expected))


def test_mcnemar_of_thousands_of_questions_neither_overflows_nor_errs():
    right = {str(n): n < 5000 for n in range(9000)}
    found = statistics.mcnemar(right, {key: not value for key, value in right.items()})
    assert (found["gained"], found["lost"]) == (5000, 4000)
    # Normal approximation with continuity correction: z = (1000 - 1) / sqrt(9000) = 10.53.
    assert 0 < found["p"] < 1e-20


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50), st.sampled_from("uvw")), min_size=1, max_size=12))
def test_token_reduction_is_a_ratio_of_means(rows):
    ours, theirs = ({str(n): float(row[side]) for n, row in enumerate(rows)} for side in (0, 1))
    found = statistics.bootstrap_reduction(ours, theirs, {str(n): row[2] for n, row in enumerate(rows)}, resamples=50)
    assert found.value == pytest.approx(1 - sum(ours.values()) / sum(theirs.values()))
    if not math.isnan(found.low):
        assert found.low <= found.high <= 1


def test_half_the_tokens_everywhere_is_a_reduction_without_doubt():
    theirs = {str(n): 10.0 + n for n in range(20)}
    found = statistics.bootstrap_reduction({k: v / 2 for k, v in theirs.items()}, theirs, {k: k for k in theirs})
    assert (found.value, found.low, found.high) == (pytest.approx(0.5), pytest.approx(0.5), pytest.approx(0.5))


@pytest.mark.parametrize(("values", "mean", "std"), [([0.5], 0.5, None), ([0.4, 0.6], 0.5, math.sqrt(0.02))])
def test_spread_over_seeds(values, mean, std):
    found = statistics.mean_and_std(values)
    assert found == (pytest.approx(mean), std if std is None else pytest.approx(std))
