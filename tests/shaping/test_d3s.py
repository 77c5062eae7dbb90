"""D3S by hand and against brute force."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_care.config import D3sConfig
from verl_care.shaping import d3s


def test_the_extremes_are_chosen():
    advantage = torch.tensor([0.1, -2.0, 0.0, 1.5, 1.4, -0.2])
    assert d3s.choose_responses(advantage, 2).tolist() == [False, True, False, True, False, False]
    # Two of the large ones beat two of the small ones.
    assert d3s.choose_responses(advantage, 3).tolist() == [False, True, False, True, True, False]
    assert d3s.choose_responses(advantage, 9).all() and not d3s.choose_responses(advantage, 0).any()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=8), st.integers(1, 8))
def test_no_other_set_has_a_larger_variance(values, count):
    advantage = torch.tensor(values)
    chosen = d3s.choose_responses(advantage, count)
    count = min(count, len(values))
    assert int(chosen.sum()) == count
    best = max(float(torch.tensor(part).double().var(correction=0)) for part in itertools.combinations(values, count))
    assert float(advantage[chosen].double().var(correction=0)) == pytest.approx(best, abs=1e-9)


def test_tokens_are_ranked_over_all_responses():
    advantage = torch.tensor([2.0, -1.0])
    entropy = torch.tensor([[0.1, 0.5, 0.0], [1.5, 0.3, 9.0]])
    valid = torch.tensor([[True, True, True], [True, True, False]])
    # |A| H: 0.2, 1.0, 0.0 and 1.5, 0.3
    assert d3s.choose_tokens(advantage, entropy, valid, 0.4).tolist() == [[False, True, False], [True, False, False]]
    assert d3s.choose_tokens(advantage, entropy, valid, 0.41).sum() == 3
    assert torch.equal(d3s.choose_tokens(advantage, entropy, valid, 1.0), valid)


CONFIG = D3sConfig(responses_initial=0.25, responses_final=0.5, tokens_initial=0.1, tokens_final=0.3)


@pytest.mark.parametrize(("progress", "responses", "tokens"), [(0.0, 2, 2), (0.5, 3, 6), (1.0, 4, 12)])
def test_both_shares_grow_with_the_training(progress, responses, tokens):
    torch.manual_seed(0)
    advantage, entropy = torch.randn(8), torch.rand(8, 10)
    valid = torch.ones(8, 10, dtype=torch.bool)
    chosen = d3s.select(advantage, entropy, valid, torch.zeros(8, dtype=torch.int64), progress, CONFIG)
    assert int(chosen.responses.sum()) == responses and int(chosen.tokens.sum()) == tokens
    assert not chosen.tokens[~chosen.responses].any()


def test_rows_without_tokens_are_not_counted_and_groups_can_be_kept_apart():
    advantage = torch.tensor([5.0, -5.0, 9.0, 0.1, -0.1, 0.0])
    entropy = torch.ones(6, 4)
    valid = torch.ones(6, 4, dtype=torch.bool)
    valid[2] = False  # a padding row
    group = torch.tensor([0, 0, 2, 1, 1, 1])
    batch = d3s.select(advantage, entropy, valid, group, 0.0, D3sConfig(responses_initial=0.4, tokens_initial=1.0))
    assert batch.responses.tolist() == [True, True, False, False, False, False]
    config = D3sConfig(responses_initial=0.5, tokens_initial=1.0, choose_from="group")
    each = d3s.select(advantage, entropy, valid, group, 0.0, config)
    assert int(each.responses[:2].sum()) == 1 and each.responses[3:].tolist() == [True, True, False]
