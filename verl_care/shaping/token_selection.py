"""Which tokens of a response train: Video-KTR's three signals, their selection, and what it means for the loss. Pure.

Source: Video-KTR, arXiv 2601.19686; repository zywang0104/Video-KTR, ``grpo_trainer.py``. A token is kept if it depends
on the picture, on the order of the frames, or was uncertain. Where paper and code differ, both are options.

Shapes: ``N`` responses, ``T`` tokens of the longest one; a mask says which places hold tokens.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verl_care.config import SelectedTokensConfig, VideoKtrConfig

TOKEN_MEANS = ("token-mean", "seq-mean-token-mean")
"""verl's ``loss_agg_mode`` that divide by a number of tokens."""


def dependence(log_prob_NT: Tensor, counterfactual_NT: Tensor, difference: str = "absolute") -> Tensor:
    """How much each token depends on what the counterfactual input lacks.

    |log p(o_t | q, o_<t) - log p(o_t | q', o_<t)|, q' with the vision tokens masked or the frames shuffled.

    Args:
        log_prob_NT: log-probability of each token, (N, T), float.
        counterfactual_NT: the same under the counterfactual input.
        difference: ``absolute`` (paper), or ``signed`` (published code): tokens that the input made more likely rank
            first, those that it made less likely last.

    Returns:
        Scores (N, T); larger depends more.
    """
    score_NT = log_prob_NT - counterfactual_NT
    return score_NT.abs() if difference == "absolute" else score_NT


def select_top(score_NT: Tensor, valid_NT: Tensor, ratio: float) -> Tensor:
    """The ceil(ratio * length) tokens of each response with the highest scores; of equal ones the earlier.

    Args:
        score_NT: scores, (N, T), float; finite where valid.
        valid_NT: places that hold tokens, (N, T), bool.
        ratio: share of each response's tokens, in [0, 1].

    Returns:
        (N, T), bool. A response without tokens has none selected.
    """
    # Rounded first: 0.2 * 15 is 3.0000000000000004 in binary, whose ceiling is 4.
    keep_N = torch.tensor([math.ceil(round(ratio * n, 9)) for n in valid_NT.sum(1).tolist()], device=score_NT.device)
    order_NT = score_NT.masked_fill(~valid_NT, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank_NT = torch.empty_like(order_NT).scatter_(
        1, order_NT, torch.arange(score_NT.shape[1], device=score_NT.device).expand_as(order_NT)
    )
    return (rank_NT < keep_N[:, None]) & valid_NT


def select_top_of_group(score_NT: Tensor, valid_NT: Tensor, group_N: Tensor, ratio: float) -> Tensor:
    """Tokens whose score reaches the (1 - ratio) quantile over all tokens of the response's group.

    The published code's rule (``keep_token_by_ratio``, linear interpolation, >=): a response gets more than its share
    where its scores are high, and equal scores are kept together.

    Args:
        score_NT: scores, (N, T), float; finite where valid.
        valid_NT: places that hold tokens, (N, T), bool.
        group_N: prompt group of each response, (N,), integers.
        ratio: share of the group's tokens, in [0, 1]; 0 selects none.

    Returns:
        (N, T), bool.
    """
    selected_NT = torch.zeros_like(valid_NT)
    if ratio == 0:
        return selected_NT
    for group in group_N.unique():
        inside_NT = valid_NT & (group_N == group)[:, None]
        scores = score_NT[inside_NT]
        if scores.numel():
            threshold = _quantile(scores, 1 - ratio)
            selected_NT |= inside_NT & (score_NT >= threshold)
    return selected_NT


def _quantile(values: Tensor, q: float) -> Tensor:
    # torch.quantile takes at most 2^24 values; a group of long responses may hold more.
    ordered = values.sort().values
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return torch.lerp(ordered[low], ordered[high], place - low)


def select_random(count_N: Tensor, valid_NT: Tensor, identities: Sequence[str]) -> Tensor:
    """As many tokens of each response as asked for, drawn uniformly without replacement.

    Args:
        count_N: tokens to draw from each response, (N,), integers.
        valid_NT: places that hold tokens, (N, T), bool.
        identities: what each draw belongs to, (N,): the same identity gives the same draw in any batch.

    Returns:
        (N, T), bool.
    """
    selected_NT = torch.zeros_like(valid_NT)
    for row, identity in enumerate(identities):
        places = valid_NT[row].nonzero().squeeze(1)
        seed = int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "big") >> 1
        drawn = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[: int(count_N[row])]
        selected_NT[row, places[drawn.to(places.device)]] = True
    return selected_NT


@dataclass(frozen=True)
class TokenSelection:
    """Which tokens train, and which signal chose them."""

    selected: Tensor
    """(N, T), bool."""
    by_signal: Mapping[str, Tensor]
    """Signal -> what it chose by itself, (N, T), bool; nothing in responses that lack the signal."""


def select_tokens(
    score_NT: Mapping[str, Tensor],
    has_N: Mapping[str, Tensor],
    valid_NT: Tensor,
    group_N: Tensor,
    config: VideoKtrConfig,
    identities: Sequence[str],
) -> TokenSelection:
    """Video-KTR's selection: the top tokens of each signal, joined.

    Args:
        score_NT: signal -> scores, (N, T), for each of ``config.signals``.
        has_N: signal -> whether a response has it, (N,), bool: an image has no order, a text no picture.
        valid_NT: places that hold tokens, (N, T), bool.
        group_N: prompt group of each response, (N,), integers.
        config: ratios, scope, and how signals are joined.
        identities: what random draws belong to, (N,).

    Returns:
        The selection. A response that has none of the signals keeps all its tokens.
    """
    by_signal = {}
    for signal in config.signals:
        usable_NT = valid_NT & has_N[signal][:, None]
        ratio = getattr(config, f"{signal}_ratio")
        if config.scope == "response":
            by_signal[signal] = select_top(score_NT[signal], usable_NT, ratio)
        else:
            by_signal[signal] = select_top_of_group(score_NT[signal], usable_NT, group_N, ratio)
    chosen = torch.stack([by_signal[signal] for signal in config.signals])
    has_SN = torch.stack([has_N[signal] for signal in config.signals])
    if config.combine == "union":
        selected_NT = chosen.any(0)
    else:
        # A signal that a response does not have takes nothing away from the others.
        selected_NT = (chosen | ~has_SN[:, :, None]).all(0) & valid_NT
    selected_NT = torch.where(has_SN.any(0)[:, None], selected_NT, valid_NT)
    if config.random:
        selected_NT = select_random(selected_NT.sum(1), valid_NT, identities)
    return TokenSelection(selected_NT, by_signal)


def answer_tokens(pieces: Sequence[str]) -> list[bool]:
    """Which tokens of a response belong to its first answer block, tags included.

    Args:
        pieces: text of each token.
    """
    text = "".join(pieces)
    block = re.search(r"<answer>.*?(</answer>|$)", text, re.DOTALL)
    start, end = block.span() if block else (0, 0)
    inside, place = [], 0
    for piece in pieces:
        inside.append(place < end and place + len(piece) > start)
        place += len(piece)
    return inside


def eos_tokens(valid_NT: Tensor, is_eos_NT: Tensor) -> Tensor:
    """The last token of each response where it ends the response, (N, T), bool.

    Args:
        valid_NT: places that hold tokens, (N, T), bool.
        is_eos_NT: tokens that end a response wherever they stand, (N, T), bool.
    """
    is_last_NT = valid_NT & (valid_NT.flip(1).long().cumsum(1).flip(1) == 1)
    return is_last_NT & is_eos_NT


def advantage_factor(selected_NT: Tensor, valid_NT: Tensor, loss_agg_mode: str, config: SelectedTokensConfig) -> Tensor:
    """What to multiply token advantages with, so that verl's loss becomes the one asked for.

    verl divides by the tokens of ``response_mask``: all of them, or the selected ones where the KL term is to be taken
    over those alone. The factor puts the normaliser of the policy loss right for both:
    m_t * (tokens that verl divides by) / (tokens that ``normalise_by`` names).

    Args:
        selected_NT: tokens that train, (N, T), bool.
        valid_NT: places that hold tokens, (N, T), bool.
        loss_agg_mode: verl's; with ``token-mean`` tokens are counted over all responses, else in each.
        config: ``normalise_by`` and ``kl``.

    Returns:
        (N, T), float32; 0 where no token trains.

    Raises:
        ValueError: ``normalise_by`` differs from ``all`` under a mode that divides by no number of tokens.
    """
    factor_NT = (selected_NT & valid_NT).float()
    if loss_agg_mode not in TOKEN_MEANS:
        if config.normalise_by != "all":
            raise ValueError(
                f"care.selected_tokens.normalise_by={config.normalise_by}: loss_agg_mode={loss_agg_mode} divides by no "
                f"number of tokens; set it to all, or loss_agg_mode to one of {', '.join(TOKEN_MEANS)}"
            )
        return factor_NT
    num_selected_N, num_valid_N = factor_NT.sum(1), valid_NT.sum(1).float()
    if loss_agg_mode == "token-mean":
        num_selected_N, num_valid_N = (count.sum().expand_as(count) for count in (num_selected_N, num_valid_N))
    divided_by_N = num_selected_N if config.kl == "selected" else num_valid_N
    wanted_N = num_selected_N if config.normalise_by == "selected" else num_valid_N
    return factor_NT * (divided_by_N / wanted_N.clamp(min=1))[:, None]
