"""Selection of tokens by hand: signals, shares, joins, controls, and the factor that gives verl the loss meant."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_care.config import SelectedTokensConfig, VideoKtrConfig
from verl_care.shaping import token_selection as ts


def mask(*rows: str) -> torch.Tensor:
    """`#` is true."""
    return torch.tensor([[c == "#" for c in row] for row in rows])


def show(mask_NT: torch.Tensor) -> list[str]:
    return ["".join("#" if on else "." for on in row) for row in mask_NT.tolist()]


@pytest.mark.parametrize(("difference", "expected"), [("absolute", [[0.5, 2.0, 0.0]]), ("signed", [[0.5, -2.0, 0.0]])])
def test_dependence(difference, expected):
    full, without = torch.tensor([[-1.0, -3.0, -0.5]]), torch.tensor([[-1.5, -1.0, -0.5]])
    assert ts.dependence(full, without, difference).tolist() == expected


def test_each_response_keeps_its_own_share():
    scores = torch.tensor([[0.1, 0.9, 0.3, 0.2, 0.8], [9.0, 8.0, 7.0, 0.0, 0.0]])
    valid = mask("#####", "###..")
    # ceil(0.4 * 5) = 2 and ceil(0.4 * 3) = 2
    assert show(ts.select_top(scores, valid, 0.4)) == [".#..#", "##..."]
    assert show(ts.select_top(scores, valid, 0.2)) == [".#...", "#...."]
    assert show(ts.select_top(scores, valid, 0.0)) == [".....", "....."]
    assert show(ts.select_top(scores, valid, 1.0)) == ["#####", "###.."]


def test_a_share_that_is_whole_is_not_rounded_up():
    scores = torch.arange(15.0)[None]
    assert int(ts.select_top(scores, torch.ones(1, 15, dtype=torch.bool), 0.2).sum()) == 3


def test_of_equal_scores_the_earlier_wins_and_invalid_places_never_do():
    scores = torch.tensor([[5.0, 1.0, 1.0, 1.0]])
    assert show(ts.select_top(scores, mask(".###"), 0.3)) == [".#.."]


def test_the_group_rule_is_the_published_quantile():
    scores = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    group = torch.tensor([0, 0, 1])
    everywhere = torch.ones(3, 3, dtype=torch.bool)
    # Scores 1..6: quantile 0.6 at 1 + 0.6 * 5 = 4.0; 7..9: 7 + 0.6 * 2 = 8.2.
    assert show(ts.select_top_of_group(scores, everywhere, group, 0.4)) == ["...", "###", "..#"]
    # A token that does not count moves the threshold: 1..5, quantile 0.6 at 3.4.
    assert show(ts.select_top_of_group(scores, mask("###", "##.", "###"), group, 0.4))[:2] == ["...", "##."]
    assert not ts.select_top_of_group(scores, everywhere, group, 0.0).any()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=40), st.floats(0.01, 1.0))
def test_the_group_rule_agrees_with_torch_quantile(values, ratio):
    scores = torch.tensor([values])
    everywhere = torch.ones_like(scores, dtype=torch.bool)
    threshold = torch.quantile(scores, 1 - ratio)
    kept = ts.select_top_of_group(scores, everywhere, torch.zeros(1, dtype=torch.int64), ratio)
    certain = (scores - threshold).abs() > 1e-5
    assert torch.equal(kept[certain], (scores >= threshold)[certain])


def test_random_draws_depend_on_their_identity_alone():
    valid = mask("##########", "#####.....", "##########")
    count = torch.tensor([3, 2, 3])
    drawn = ts.select_random(count, valid, ["a", "b", "c"])
    assert drawn.sum(1).tolist() == [3, 2, 3] and not (drawn & ~valid).any()
    assert show(drawn)[0] != show(drawn)[2]
    again = ts.select_random(count[[2, 0]], valid[[2, 0]], ["c", "a"])
    assert torch.equal(again, drawn[[2, 0]])


def test_random_draws_reach_every_token():
    valid = mask("####")
    hits = sum(ts.select_random(torch.tensor([1]), valid, [str(i)]).long() for i in range(200))
    assert int(hits.sum()) == 200 and int(hits.min()) > 25


SCORES = {
    "visual": torch.tensor([[9.0, 0.0, 1.0, 0.0, 0.0], [9.0, 0.0, 1.0, 0.0, 0.0], [0.0] * 5]),
    "temporal": torch.tensor([[9.0, 8.0, 0.0, 0.0, 0.0], [0.0] * 5, [0.0] * 5]),
    "entropy": torch.tensor([[0.0, 0.0, 0.0, 1.0, 0.0]] * 3),
}
HAS = {
    "visual": torch.tensor([True, True, False]),
    "temporal": torch.tensor([True, False, False]),
    "entropy": torch.tensor([True, True, True]),
}
"""A video, an image and a text."""


def select(**options):
    config = VideoKtrConfig(**options)
    valid = torch.ones(3, 5, dtype=torch.bool)
    return ts.select_tokens(SCORES, HAS, valid, torch.tensor([0, 1, 2]), config, ["a", "b", "c"])


def test_union_joins_what_each_signal_chooses():
    chosen = select()
    assert show(chosen.selected) == ["#..#.", "#..#.", "...#."]
    assert {name: show(m)[0] for name, m in chosen.by_signal.items()} == {
        "visual": "#....",
        "temporal": "#....",
        "entropy": "...#.",
    }
    assert show(chosen.by_signal["temporal"])[1:] == [".....", "....."]


def test_intersection_counts_the_signals_that_a_response_has():
    chosen = select(combine="intersection", signals=["visual", "temporal"], visual_ratio=0.4, temporal_ratio=0.4)
    # The video: {0, 2} and {0, 1}; the image: visual alone; the text has neither and trains whole.
    assert show(chosen.selected) == ["#....", "#.#..", "#####"]


@pytest.mark.parametrize(
    ("signal", "expected"),
    [
        ("visual", ["#....", "#....", "#####"]),
        ("temporal", ["#....", "#####", "#####"]),
        ("entropy", ["...#.", "...#.", "...#."]),
    ],
)
def test_single_signals(signal, expected):
    assert show(select(signals=[signal]).selected) == expected


def test_ratios_belong_to_their_signals():
    chosen = select(visual_ratio=0.4, temporal_ratio=0.0, entropy_ratio=0.0)
    assert show(chosen.selected) == ["#.#..", "#.#..", "....."]


def test_the_group_scope_counts_over_the_responses_of_a_prompt():
    scores = {"entropy": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
    config = VideoKtrConfig(signals=["entropy"], entropy_ratio=0.5, scope="group")
    valid = torch.ones(2, 2, dtype=torch.bool)
    has = {"entropy": torch.tensor([True, True])}
    chosen = ts.select_tokens(scores, has, valid, torch.tensor([7, 7]), config, ["a", "b"])
    assert show(chosen.selected) == ["..", "##"]


def test_the_random_control_has_the_share_of_each_response():
    real, control = select(visual_ratio=0.4), select(visual_ratio=0.4, random=True)
    assert torch.equal(control.selected.sum(1), real.selected.sum(1))
    assert not torch.equal(control.selected, real.selected)
    assert torch.equal(control.by_signal["visual"], real.by_signal["visual"])


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["<think>", "a", "</think>", "<answer>", "B", "</answer>", "<eos>"], "...###."),
        # Tags of several tokens, and a token that holds the end of one word and the beginning of the tag.
        (["so<", "ans", "wer>", "B", "</", "answer>", "!"], "######."),
        (["<answer>", "A", "</answer>", "<answer>", "B", "</answer>"], "###..."),
        (["cut ", "<answer>", "A"], ".##"),
        (["no", " answer"], ".."),
        ([], ""),
    ],
)
def test_answer_block(pieces, expected):
    assert "".join("#" if on else "." for on in ts.answer_tokens(pieces)) == expected


def test_eos_is_the_last_token_where_the_response_was_not_cut():
    valid = mask("###.", "####", "####")
    is_eos = mask("..#.", "....", ".#.#")
    assert show(ts.eos_tokens(valid, is_eos)) == ["..#.", "....", "...#"]


# The loss that verl computes: mean over the tokens of response_mask of -A_t (on policy), then over responses.
def verl_loss(advantages, response_mask, mode):
    if mode == "token-mean":
        return -(advantages * response_mask).sum() / response_mask.sum()
    if mode == "seq-mean-token-mean":
        return (-(advantages * response_mask).sum(1) / response_mask.sum(1)).mean()
    return -(advantages * response_mask).sum(1).mean()


@pytest.mark.parametrize("kl", ["all", "selected"])
@pytest.mark.parametrize(
    ("mode", "normalise_by", "expected"),
    [
        # Advantages 2 and -1; 2 of 4 and 1 of 2 tokens train.
        ("seq-mean-token-mean", "all", -(2 * 2 / 4 - 1 * 1 / 2) / 2),
        ("seq-mean-token-mean", "selected", -(2 - 1) / 2),
        ("token-mean", "all", -(2 * 2 - 1) / 6),
        ("token-mean", "selected", -(2 * 2 - 1) / 3),
        ("seq-mean-token-sum", "all", -(2 * 2 - 1) / 2),
    ],
)
def test_the_factor_makes_the_loss_the_one_asked_for(mode, normalise_by, expected, kl):
    valid, selected = mask("####", "##.."), mask(".##.", "#...")
    advantages = torch.tensor([[2.0] * 4, [-1.0] * 4])
    config = SelectedTokensConfig(normalise_by=normalise_by, kl=kl)
    factor = ts.advantage_factor(selected, valid, mode, config)
    response_mask = (selected if kl == "selected" else valid).float()
    assert float(verl_loss(advantages * factor, response_mask, mode)) == pytest.approx(expected, rel=1e-6)


def test_a_response_without_selected_tokens_trains_nothing_and_divides_by_nothing():
    valid, selected = mask("##", "##"), mask("..", "#.")
    for mode in ts.TOKEN_MEANS:
        for kl in ("all", "selected"):
            for by in ("all", "selected"):
                factor = ts.advantage_factor(selected, valid, mode, SelectedTokensConfig(normalise_by=by, kl=kl))
                assert factor.isfinite().all() and not factor[0].any()


def test_a_mode_that_divides_by_no_tokens_refuses_the_selected_normaliser():
    with pytest.raises(ValueError, match="loss_agg_mode=seq-mean-token-sum"):
        ts.advantage_factor(mask("#"), mask("#"), "seq-mean-token-sum", SelectedTokensConfig(normalise_by="selected"))
