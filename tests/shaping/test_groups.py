"""Group statistics against a loop over the groups."""

import pytest
import torch

from verl_care.shaping import groups


@pytest.fixture(params=["dense", "sparse", "negative"])
def rows(request):
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(0, 6, (40,), generator=generator)
    names = {"dense": ids, "sparse": ids * 1_000_003, "negative": ids - 9}
    return torch.rand(40, generator=generator), names[request.param]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (groups.group_mean, lambda v: v.mean()),
        (groups.group_std, lambda v: v.std()),
        (groups.group_min, lambda v: v.min()),
        (groups.group_max, lambda v: v.max()),
    ],
)
def test_statistic_equals_a_loop(rows, function, expected):
    values, ids = rows
    result = function(values, ids)
    for name in ids.unique():
        torch.testing.assert_close(result[ids == name], expected(values[ids == name]).expand((ids == name).sum()))


@pytest.mark.parametrize("q", [0.0, 0.25, 0.5, 0.75, 0.9, 1.0])
def test_quantiles_equal_torch(rows, q):
    values, ids = rows
    torch.testing.assert_close(groups.quantile(values, q), torch.quantile(values, q))
    index, count = groups.index_groups(ids)
    result = groups.group_quantile(values, q, index, count)
    for g in range(count):
        torch.testing.assert_close(result[g], torch.quantile(values[index == g], q))


def test_advantage_by_hand():
    # Group 0: 1, 3 -> mean 2, sample std sqrt(2); group 9 has one member: verl's advantage is its reward.
    advantage = groups.group_advantage(torch.tensor([1.0, 5.0, 3.0]), torch.tensor([0, 9, 0]))
    torch.testing.assert_close(advantage, torch.tensor([-(0.5**0.5), 5.0, 0.5**0.5]), rtol=1e-5, atol=1e-5)
    centred = groups.group_advantage(torch.tensor([1.0, 5.0, 3.0]), torch.tensor([0, 9, 0]), norm_by_std=False)
    torch.testing.assert_close(centred, torch.tensor([-1.0, 5.0, 1.0]))


def test_advantage_equals_verl():
    core_algos = pytest.importorskip("verl.trainer.ppo.core_algos")
    generator = torch.Generator().manual_seed(1)
    reward, ids = torch.rand(12, generator=generator), torch.tensor([0, 1, 2] * 3 + [3, 3, 4])
    mask = torch.ones(12, 1)
    theirs, _ = core_algos.compute_grpo_outcome_advantage(reward[:, None], mask, ids.numpy())
    torch.testing.assert_close(groups.group_advantage(reward, ids), theirs[:, 0], rtol=1e-5, atol=1e-5)
