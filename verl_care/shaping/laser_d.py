"""LASER-D: LASER with a target for each difficulty, found again every few steps. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from verl_care.shaping import groups
from verl_care.shaping.base import Properties, ShapingBatch, register_rule
from verl_care.shaping.length_rule import LengthRule, require

BANDS = ("high", "medium", "low")
"""Bands of group accuracy: from 2/3, from 1/3, below."""


@dataclass(frozen=True)
class LaserState:
    """Targets in use and what was seen since they were set."""

    targets: tuple[float, ...]
    """L_T of each band in tokens, in the order of ``BANDS``."""
    histogram: tuple[tuple[int, ...], ...]
    """Right answers of each band by the first grid length that covers them; the last cell lies beyond the grid."""
    updates: int = 0
    """Updates since the targets were set."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "targets": list(self.targets),
            "histogram": [list(row) for row in self.histogram],
            "updates": self.updates,
        }


@dataclass(frozen=True, kw_only=True)
class _DynamicLaser(LengthRule):
    """Bands, targets and their refresh; LASER-D and LASER-DE differ in what they pay for."""

    alpha: float = 0.5
    """The bonus."""
    group_size: int = 8
    """n in the expected number of right answers of a band: 2n/3, n/3 and 1, rounded down."""
    grid_low: float = 4096.0
    """Shortest target in tokens (scripts: 4096; 2048 and 1024 for smaller models)."""
    grid_high: float = 16384.0
    """Longest target in tokens; in use until the first refresh."""
    grid_step: float = 1024.0
    """Distance of targets in tokens."""
    refresh_steps: int = 20
    """Updates between two choices of targets."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.alpha >= 0, "alpha", self.alpha, "a number >= 0")
        require(self.group_size >= 1, "group_size", self.group_size, "an integer >= 1")
        require(self.grid_step > 0, "grid_step", self.grid_step, "a number > 0")
        require(0 < self.grid_low <= self.grid_high, "grid_low", self.grid_low, "a number in (0, grid_high]")
        require(self.refresh_steps >= 1, "refresh_steps", self.refresh_steps, "an integer >= 1")

    @property
    def grid(self) -> tuple[float, ...]:
        """Targets to choose from, in tokens, rising."""
        cells = int(math.floor((self.grid_high - self.grid_low) / self.grid_step)) + 1
        return tuple(self.grid_low + cell * self.grid_step for cell in range(cells))

    def _empty_histogram(self) -> tuple[tuple[int, ...], ...]:
        return ((0,) * (len(self.grid) + 1),) * len(BANDS)

    def initial_state(self) -> LaserState:
        return LaserState(targets=(self.grid_high,) * len(BANDS), histogram=self._empty_histogram())

    def state_from_dict(self, data: Mapping[str, Any]) -> LaserState:
        try:
            targets = tuple(float(target) for target in data["targets"])
            histogram = tuple(tuple(int(n) for n in row) for row in data["histogram"])
            updates = int(data["updates"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"no state of {self.name}: {error!r}; found {sorted(data)}") from None
        shape = [len(row) for row in histogram]
        if len(targets) != len(BANDS) or shape != [len(self.grid) + 1] * len(BANDS):
            raise ValueError(
                f"the saved state has {len(targets)} targets and a grid of {shape}; "
                f"grid_low, grid_high and grid_step give {len(self.grid) + 1} cells for {len(BANDS)} bands"
            )
        return LaserState(targets=targets, histogram=histogram, updates=updates)

    def update_state(self, batch: ShapingBatch, state: LaserState) -> LaserState:
        """Counts the batch's right answers; every ``refresh_steps`` updates chooses new targets.

        The published run counts on 500 monitor prompts; here the training batches since the last refresh serve.
        """
        band_N = self._band(batch)
        grid = torch.tensor(self.grid, dtype=batch.length.dtype, device=batch.length.device)
        cell_N = torch.bucketize(batch.length, grid)
        flat_N = (band_N * (len(self.grid) + 1) + cell_N)[batch.correct]
        counts = torch.bincount(flat_N, minlength=len(BANDS) * (len(self.grid) + 1)).view(len(BANDS), -1)
        histogram = tuple(
            tuple(int(old + new) for old, new in zip(row, added, strict=True))
            for row, added in zip(state.histogram, counts.tolist(), strict=True)
        )
        if state.updates + 1 < self.refresh_steps:
            return LaserState(state.targets, histogram, state.updates + 1)
        return LaserState(choose_targets(histogram, self.grid, self.group_size), self._empty_histogram())

    def state_metrics(self, state: LaserState) -> dict[str, float]:
        return {f"care/rule/target_{band}": target for band, target in zip(BANDS, state.targets, strict=True)}

    def _band(self, batch: ShapingBatch) -> Tensor:
        # Counts instead of a rate: 2 of 3 right must not depend on rounding.
        index_N, num_groups = groups.index_groups(batch.group)
        right_G = 3 * groups.masked_count(batch.correct, index_N, num_groups)
        size_G = groups.count(index_N, num_groups)
        band_G = 2 - (right_G >= size_G).long() - (right_G >= 2 * size_G).long()
        return band_G[index_N]

    def _within_target(self, batch: ShapingBatch, state: LaserState) -> Tensor:
        targets = torch.tensor(state.targets, dtype=batch.length.dtype, device=batch.length.device)
        return batch.length <= targets[self._band(batch)]


def choose_targets(
    histogram: tuple[tuple[int, ...], ...], grid: tuple[float, ...], group_size: int
) -> tuple[float, ...]:
    """Shortest grid length of each band within which a group is expected to have a right answer.

    The smallest L with floor(coverage(L) * n_band) >= 1; n_band = floor(2n/3), floor(n/3), 1; the longest L where none
    is (hkust-nlp/Laser, ``_choose_target_length``). A band without right answers keeps the longest.

    Args:
        histogram: right answers of each band by grid cell, the last one beyond the grid.
        grid: target lengths in tokens, rising.
        group_size: n.
    """
    expected = (2 * group_size // 3, group_size // 3, 1)
    targets = []
    for row, number in zip(histogram, expected, strict=True):
        total, covered, target = sum(row), 0, grid[-1]
        for length, count in zip(grid, row, strict=False):
            covered += count
            if total and covered * number >= total:
                target = length
                break
        targets.append(target)
    return tuple(targets)


@register_rule
@dataclass(frozen=True, kw_only=True)
class LaserDRule(_DynamicLaser):
    """bonus = alpha if right and l <= L_T of the group's accuracy band, else 0."""

    name: ClassVar[str] = "laser_d"
    source: ClassVar[str] = "arXiv 2505.15612; hkust-nlp/Laser length_penalty.py larse-d, _choose_target_length"
    properties: ClassVar[Properties] = Properties(
        ranks_wrong_by_length=False, signal_when_all_right=True, right_below_wrong=False
    )

    def compute_bonus(self, batch: ShapingBatch, state: LaserState) -> Tensor:
        return self.alpha * (batch.correct & self._within_target(batch, state))
