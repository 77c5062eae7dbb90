"""What shaping did to a batch: metrics of lengths, groups and advantages. Pure.

All metric names that every rule shares stand here. verl merges metrics of several updates by sub-strings of their names
(``max``, ``min``, ``sum``, ``total``), so no name holds one of these; the rest is averaged.
"""

from __future__ import annotations

import torch
from torch import Tensor

from verl_care.shaping import groups
from verl_care.shaping.base import Shaped, ShapingBatch

ALL_RIGHT = 1.0 - 1e-6
"""Pass rate from which a group counts as all right; below 1e-6 it counts as all wrong."""


def compute_batch_metrics(batch: ShapingBatch) -> dict[str, float]:
    """Metrics that need no shaping: lengths, pass rates, kinds of groups. An empty batch has none."""
    if len(batch) == 0:
        return {}
    index_N, num_groups = groups.index_groups(batch.group)
    pass_rate_G = groups.mean(batch.accuracy, index_N, num_groups)
    all_right_G, all_wrong_G = pass_rate_G > ALL_RIGHT, pass_rate_G < 1 - ALL_RIGHT
    metrics = {
        "care/pass_rate": float(pass_rate_G.mean()),
        "care/response_length/mean": float(batch.length.mean()),
        "care/response_length/p50": float(groups.quantile(batch.length, 0.5)),
        "care/response_length/p90": float(groups.quantile(batch.length, 0.9)),
        "care/groups/all_right": float(all_right_G.float().mean()),
        "care/groups/all_wrong": float(all_wrong_G.float().mean()),
        "care/groups/mixed": float((~all_right_G & ~all_wrong_G).float().mean()),
    }
    if bool(batch.correct.any()):
        metrics["care/response_length/correct"] = float(batch.length[batch.correct].mean())
    return metrics


def compute_survival_metrics(batch: ShapingBatch, num_prompts: int, responses_a_prompt: int) -> dict[str, float]:
    """How much of what was asked for came back; sessions that raised or timed out left nothing.

    A group of one is told apart: GRPO takes its reward for its advantage, neither centred nor scaled.

    Args:
        batch: the responses that are there.
        num_prompts: prompts of an update.
        responses_a_prompt: verl's ``rollout.n``.
    """
    index_N, num_groups = groups.index_groups(batch.group)
    size_G = torch.bincount(index_N, minlength=num_groups)
    return {
        "care/rollouts/missing": 1.0 - len(batch) / (num_prompts * responses_a_prompt),
        "care/groups/short": float((size_G < responses_a_prompt).float().mean()) if num_groups else 0.0,
        "care/groups/single": float((size_G == 1).float().mean()) if num_groups else 0.0,
    }


def compute_shaping_metrics(
    batch: ShapingBatch, shaped: Shaped, *, norm_by_std: bool = True, eps: float = 1e-6
) -> dict[str, float]:
    """How much of the reward and of the advantages comes from shaping.

    ``care/adv_delta/<part>`` is the mean over responses of |A(reward) - A(reward without the part)|, with GRPO's group
    normalisation. A group is *effort only* when its scores are all equal but its rewards are not: its whole gradient
    then comes from length.

    Args:
        batch: what was shaped; ``score`` without any bonus.
        shaped: what the rule gave; columns ``temporal_bonus`` and ``bonus_without_amplifier`` are used where present.
        norm_by_std: verl's ``algorithm.norm_adv_by_std_in_grpo``.
        eps: of the normalisation.
    """
    if len(batch) == 0:
        return {}

    def advantage(reward_N: Tensor) -> Tensor:
        return groups.group_advantage(reward_N, batch.group, norm_by_std=norm_by_std, eps=eps)

    def mean_delta(without_N: Tensor) -> float:
        return float((full_N - advantage(without_N)).abs().mean())

    # In float64: a group whose rewards hardly differ divides by a small spread, and float32's rounding, which goes by
    # the order of the rows, would look like a contribution.
    bonus_N = shaped.bonus.double()
    reward_N = batch.score.double() + bonus_N
    full_N = advantage(reward_N) if shaped.advantage is None else shaped.advantage.double()
    temporal_N = shaped.columns.get("temporal_bonus")
    effort_N = bonus_N if temporal_N is None else bonus_N - temporal_N
    base_N = reward_N - effort_N
    metrics = {
        "care/effort/mean": float(effort_N.mean()),
        "care/adv_delta/effort": mean_delta(base_N),
    }
    if temporal_N is not None:
        metrics["care/adv_delta/temporal"] = mean_delta(reward_N - temporal_N)
    plain_N = shaped.columns.get("bonus_without_amplifier")
    if plain_N is not None:
        metrics["care/adv_delta/amplifier"] = mean_delta(base_N + plain_N)
    reward_spread_N = reward_N - groups.group_mean(reward_N, batch.group)
    base_spread_N = base_N - groups.group_mean(base_N, batch.group)
    variance = float(reward_spread_N.square().mean())
    if variance > 0:
        effort_spread_N = effort_N - groups.group_mean(effort_N, batch.group)
        # Covariance with the reward over its variance: the parts' shares add up to one.
        metrics["care/effort/share_of_variance"] = float((effort_spread_N * reward_spread_N).mean()) / variance
    index_N, num_groups = groups.index_groups(batch.group)
    base_moves_G = torch.zeros(num_groups).index_add_(0, index_N, (base_spread_N.abs() > 1e-6).float()) > 0
    reward_moves_G = torch.zeros(num_groups).index_add_(0, index_N, (reward_spread_N.abs() > 1e-6).float()) > 0
    metrics["care/groups/effort_only"] = float((reward_moves_G & ~base_moves_G).float().mean())
    return metrics
