"""D3S: train on the responses and tokens that carry most signal, fewest at the start. Pure.

Source: "Learning More with Less: Dynamic Dual-Level Down-Sampling", arXiv 2509.22115. The formulas are the paper's; its
constants are not in the sources that could be read, see ``D3sConfig``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from verl_care.config import D3sConfig


def anneal(initial: float, final: float, progress: float) -> float:
    """(1 - p) * initial + p * final, with the progress p of the training in [0, 1]."""
    return (1 - progress) * initial + progress * final


def choose_responses(advantage_N: Tensor, count: int) -> Tensor:
    """The ``count`` responses whose advantages have the largest variance.

    Such a set holds the i smallest and the count - i largest values for some i (as in PODS), so that the best one is
    found by looking at each i, with running sums.

    Args:
        advantage_N: advantages over all responses, (N,), not normalised anew afterwards.
        count: how many to choose, at most N are.

    Returns:
        (N,), bool.
    """
    num = len(advantage_N)
    count = min(count, num)
    chosen_N = torch.zeros(num, dtype=torch.bool, device=advantage_N.device)
    if count == 0:
        return chosen_N
    order_N = advantage_N.double().argsort(stable=True)
    ordered_N = advantage_N.double()[order_N]
    zero = ordered_N.new_zeros(1)
    sums, squares = (torch.cat([zero, values.cumsum(0)]) for values in (ordered_N, ordered_N.square()))
    low = torch.arange(count + 1, device=advantage_N.device)
    high = num - (count - low)
    mean = (sums[low] + sums[num] - sums[high]) / count
    variance = (squares[low] + squares[num] - squares[high]) / count - mean.square()
    best = int(variance.argmax())
    chosen_N[order_N[:best]] = True
    chosen_N[order_N[num - (count - best) :]] = True
    return chosen_N


def choose_tokens(advantage_N: Tensor, entropy_NT: Tensor, valid_NT: Tensor, ratio: float) -> Tensor:
    """The top share of all tokens by |A_i| * H_it, over the responses together; of equal ones the earlier.

    Args:
        advantage_N: of each response, (N,).
        entropy_NT: of the policy at each token, (N, T).
        valid_NT: tokens to choose from, (N, T), bool.
        ratio: share of them, in [0, 1], rounded up.

    Returns:
        (N, T), bool.
    """
    score = (advantage_N.abs()[:, None] * entropy_NT)[valid_NT]
    keep = torch.zeros(len(score), dtype=torch.bool, device=score.device)
    keep[score.argsort(descending=True, stable=True)[: math.ceil(round(ratio * len(score), 9))]] = True
    chosen_NT = torch.zeros_like(valid_NT)
    chosen_NT[valid_NT] = keep
    return chosen_NT


@dataclass(frozen=True)
class D3sSelection:
    """Which responses and tokens train."""

    responses: Tensor
    """(N,), bool."""
    tokens: Tensor
    """(N, T), bool; nothing outside the responses."""


def select(
    advantage_N: Tensor, entropy_NT: Tensor, valid_NT: Tensor, group_N: Tensor, progress: float, config: D3sConfig
) -> D3sSelection:
    """Both levels, at the shares that the progress of the training gives.

    Args:
        advantage_N: group-normalised advantage of each response, (N,).
        entropy_NT: of the policy at each token, (N, T).
        valid_NT: places that hold tokens, (N, T), bool; a response without any is not counted.
        group_N: prompt group of each response, (N,), integers.
        progress: of the training, in [0, 1].
        config: shares, and whether responses are chosen from the batch or from each group.
    """
    share = anneal(config.responses_initial, config.responses_final, progress)
    counts_N = valid_NT.any(1)
    responses_N = torch.zeros_like(counts_N)
    pools = [counts_N] if config.choose_from == "batch" else [counts_N & (group_N == g) for g in group_N.unique()]
    for pool_N in pools:
        rows = pool_N.nonzero().squeeze(1)
        responses_N[rows] = choose_responses(advantage_N[rows], math.ceil(round(share * len(rows), 9)))
    ratio = anneal(config.tokens_initial, config.tokens_final, progress)
    return D3sSelection(responses_N, choose_tokens(advantage_N, entropy_NT, valid_NT & responses_N[:, None], ratio))
