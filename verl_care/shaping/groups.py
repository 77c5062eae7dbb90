"""Statistics within prompt groups, by group id. Pure: (N,) tensors in, (N,) or (G,) tensors out.

Shape suffixes: N responses, G groups. Ids, never a reshape to (prompts, group size): verl reorders and pads rows, and a
group is short when one of its sessions failed.
"""

from __future__ import annotations

import torch
from torch import Tensor


def index_groups(group_N: Tensor) -> tuple[Tensor, int]:
    """Renumbers group ids from 0 without gaps.

    Args:
        group_N: group id of each response, (N,), any integers; members need not be adjacent.

    Returns:
        The new ids (N,), int64, and the number of groups G.

    Raises:
        ValueError: not a one-dimensional integer tensor.
    """
    if group_N.ndim != 1 or group_N.is_floating_point() or group_N.is_complex():
        raise ValueError(f"expected group ids as a (N,) integer tensor; got {group_N.dtype} {tuple(group_N.shape)}")
    if group_N.numel() == 0:
        return group_N.long(), 0
    low, high = (int(bound) for bound in torch.aminmax(group_N))
    if 0 <= low and high < 2 * group_N.numel():
        # A counting pass instead of the sort in torch.unique: ids are dense in practice.
        present = torch.bincount(group_N, minlength=high + 1) > 0
        renumbered = torch.cumsum(present, 0) - 1
        return renumbered[group_N], int(present.sum())
    unique, index_N = torch.unique(group_N, return_inverse=True)
    return index_N, unique.numel()


def count(index_N: Tensor, num_groups: int) -> Tensor:
    """Members of each group, (G,), int64."""
    return torch.bincount(index_N, minlength=num_groups)


def mean(values_N: Tensor, index_N: Tensor, num_groups: int) -> Tensor:
    """Mean of each group, (G,), dtype of ``values_N``."""
    total_G = values_N.new_zeros(num_groups).index_add_(0, index_N, values_N)
    return total_G / count(index_N, num_groups).to(values_N.dtype)


def group_mean(values_N: Tensor, group_N: Tensor) -> Tensor:
    """Mean of ``values_N`` within each group, given back to every member, (N,)."""
    index_N, num_groups = index_groups(group_N)
    return mean(values_N, index_N, num_groups)[index_N]


def group_std(values_N: Tensor, group_N: Tensor) -> Tensor:
    """Sample standard deviation (n - 1) within each group, given back to every member; 0 for a group of one."""
    index_N, num_groups = index_groups(group_N)
    centred_N = values_N - mean(values_N, index_N, num_groups)[index_N]
    square_G = values_N.new_zeros(num_groups).index_add_(0, index_N, centred_N.square())
    degrees_G = (count(index_N, num_groups) - 1).clamp(min=1).to(values_N.dtype)
    return (square_G / degrees_G).sqrt()[index_N]


def group_min(values_N: Tensor, group_N: Tensor) -> Tensor:
    """Smallest value within each group, given back to every member, (N,)."""
    index_N, num_groups = index_groups(group_N)
    return values_N.new_zeros(num_groups).scatter_reduce_(0, index_N, values_N, "amin", include_self=False)[index_N]


def group_max(values_N: Tensor, group_N: Tensor) -> Tensor:
    """Largest value within each group, given back to every member, (N,)."""
    index_N, num_groups = index_groups(group_N)
    return values_N.new_zeros(num_groups).scatter_reduce_(0, index_N, values_N, "amax", include_self=False)[index_N]


def quantile(values_N: Tensor, q: float) -> Tensor:
    """Quantile with linear interpolation, 0-d; by selection, as torch.quantile sorts and is bounded in size."""
    position = q * (values_N.numel() - 1)
    below = int(position)
    low = torch.kthvalue(values_N, below + 1).values
    if position == below:
        return low
    # The same value where it occurs again, else the next one: cheaper than a second selection.
    again = int((values_N <= low).sum()) >= below + 2
    return torch.lerp(low, low if again else values_N[values_N > low].amin(), position - below)


def group_quantile(values_N: Tensor, q: float, index_N: Tensor, num_groups: int) -> Tensor:
    """Quantile of each group with linear interpolation, (G,)."""
    order_N = torch.argsort(values_N, stable=True)
    order_N = order_N[torch.argsort(index_N[order_N], stable=True)]
    sorted_N = values_N[order_N]
    size_G = count(index_N, num_groups)
    start_G = torch.cumsum(size_G, 0) - size_G
    position_G = q * (size_G - 1).to(values_N.dtype)
    below_G = position_G.floor().long()
    above_G = torch.minimum(below_G + 1, size_G - 1)
    return torch.lerp(sorted_N[start_G + below_G], sorted_N[start_G + above_G], position_G - below_G)


def group_advantage(reward_N: Tensor, group_N: Tensor, *, norm_by_std: bool = True, eps: float = 1e-6) -> Tensor:
    """GRPO's advantage: (r - group mean) / (group std + eps), as verl computes it.

    verl gives a group of one response mean 0 and std 1, so that its advantage is its reward; so does this function.

    Args:
        reward_N: (N,), floating.
        group_N: (N,), integer ids.
        norm_by_std: verl's ``algorithm.norm_adv_by_std_in_grpo``.
        eps: verl's 1e-6 (the published code has 1e-4).
    """
    index_N, num_groups = index_groups(group_N)
    alone_N = (count(index_N, num_groups) == 1)[index_N]
    centred_N = reward_N - mean(reward_N, index_N, num_groups)[index_N]
    if norm_by_std:
        centred_N = centred_N / (group_std(reward_N, group_N) + eps)
        return torch.where(alone_N, reward_N / (1 + eps), centred_N)
    return torch.where(alone_N, reward_N, centred_N)


def masked_count(mask_N: Tensor, index_N: Tensor, num_groups: int) -> Tensor:
    """Members of each group where ``mask_N`` (N,), bool, is true, (G,), int64."""
    return torch.zeros(num_groups, dtype=torch.int64, device=mask_N.device).index_add_(0, index_N, mask_N.long())


def masked_mean(values_N: Tensor, mask_N: Tensor, index_N: Tensor, num_groups: int) -> Tensor:
    """Mean of each group over the members where ``mask_N`` is true, (G,); 0 for a group without one."""
    kept_N = torch.where(mask_N, values_N, torch.zeros_like(values_N))
    total_G = values_N.new_zeros(num_groups).index_add_(0, index_N, kept_N)
    return total_G / masked_count(mask_N, index_N, num_groups).clamp(min=1).to(values_N.dtype)


def masked_variance(
    values_N: Tensor, mask_N: Tensor, index_N: Tensor, num_groups: int, *, correction: int = 0
) -> Tensor:
    """Variance of each group over the members where ``mask_N`` is true, (G,); 0 where fewer than correction + 1.

    Args:
        correction: 0 for the population, 1 for a sample.
    """
    centred_N = values_N - masked_mean(values_N, mask_N, index_N, num_groups)[index_N]
    square_N = torch.where(mask_N, centred_N.square(), torch.zeros_like(centred_N))
    square_G = values_N.new_zeros(num_groups).index_add_(0, index_N, square_N)
    degrees_G = masked_count(mask_N, index_N, num_groups) - correction
    return square_G / degrees_G.clamp(min=1).to(values_N.dtype)


def masked_min(values_N: Tensor, mask_N: Tensor, index_N: Tensor, num_groups: int) -> Tensor:
    """Smallest value of each group where ``mask_N`` is true, (G,); inf for a group without one."""
    kept_N = torch.where(mask_N, values_N, torch.full_like(values_N, torch.inf))
    return values_N.new_full((num_groups,), torch.inf).scatter_reduce_(0, index_N, kept_N, "amin")


def masked_max(values_N: Tensor, mask_N: Tensor, index_N: Tensor, num_groups: int) -> Tensor:
    """Largest value of each group where ``mask_N`` is true, (G,); -inf for a group without one."""
    kept_N = torch.where(mask_N, values_N, torch.full_like(values_N, -torch.inf))
    return values_N.new_full((num_groups,), -torch.inf).scatter_reduce_(0, index_N, kept_N, "amax")


def first_rows(index_N: Tensor, num_groups: int) -> Tensor:
    """Row of the first member of each group, (G,), int64."""
    rows_N = torch.arange(index_N.numel(), device=index_N.device)
    return torch.zeros(num_groups, dtype=torch.int64, device=index_N.device).scatter_reduce_(
        0, index_N, rows_N, "amin", include_self=False
    )
