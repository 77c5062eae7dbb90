"""What the length rules share: one bonus a response from lengths, verdicts and groups. Pure.

``bonus`` is total reward minus score. Where a paper replaces the reward by r', the bonus is r' - r with r = 1 for a
right answer and 0 for a wrong one. Shape suffixes: N responses, G prompt groups.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from verl_care.shaping import groups
from verl_care.shaping.base import Rule, Shaped, ShapingBatch

GATES = ("all", "right_only")


def require(condition: bool, name: str, value: object, expected: str) -> None:
    """Refuses a constant.

    Raises:
        ValueError: the condition does not hold; the message names the constant and what it had to be.
    """
    if not condition:
        raise ValueError(f"{name}: expected {expected}; got {value!r}")


@dataclass(frozen=True, kw_only=True)
class LengthRule(Rule):
    """A rule whose bonus needs no more than the batch and its own state; sub-classes define ``compute_bonus``."""

    gate: str = "all"
    """``all`` as published; ``right_only``: no bonus, good or bad, for wrong answers."""

    def __post_init__(self) -> None:
        require(self.gate in GATES, "gate", self.gate, f"one of {GATES}")

    def compute_bonus(self, batch: ShapingBatch, state: Any) -> Tensor:
        """Bonus of each response, (N,), before the gate."""
        raise NotImplementedError

    def update_state(self, batch: ShapingBatch, state: Any) -> Any:
        """State after this batch; unchanged by default."""
        return state

    def shape(self, batch: ShapingBatch, state: Any) -> tuple[Shaped, Any]:
        bonus_N = self.compute_bonus(batch, state).to(torch.float32)
        if self.gate == "right_only":
            bonus_N = torch.where(batch.correct, bonus_N, torch.zeros_like(bonus_N))
        return Shaped(bonus=bonus_N), self.update_state(batch, state)


def extra_column(batch: ShapingBatch, name: str, default: float | None = None) -> Tensor:
    """A column of ``batch.extra`` as (N,), float32.

    Args:
        default: value for every response where the batch has no such column; None makes the column necessary.

    Raises:
        ValueError: the column is missing or not (N,).
    """
    if name not in batch.extra:
        if default is None:
            raise ValueError(f"extra.{name}: expected a value for each response; the batch has none")
        return torch.full_like(batch.length, default)
    column = torch.as_tensor(batch.extra[name], dtype=torch.float32, device=batch.length.device)
    if column.shape != batch.length.shape:
        raise ValueError(f"extra.{name}: expected shape {tuple(batch.length.shape)}; got {tuple(column.shape)}")
    return column


def group_keys(batch: ShapingBatch, index_N: Tensor, num_groups: int) -> list[str]:
    """A name of each group that does not depend on row order: its prompt key, else its group id; G strings."""
    rows = groups.first_rows(index_N, num_groups).tolist()
    if batch.prompt_key:
        return [batch.prompt_key[row] for row in rows]
    return [str(group) for group in batch.group[rows].tolist()]


def group_uniform(batch: ShapingBatch, index_N: Tensor, num_groups: int) -> Tensor:
    """A number in [0, 1) for each group, (G,), float64: a hash of step and prompt key, the same in every replay."""
    keys = group_keys(batch, index_N, num_groups)
    hashes = [zlib.crc32(f"{batch.step}/{key}".encode()) for key in keys]
    return torch.tensor(hashes, dtype=torch.float64, device=batch.length.device) / 2**32


def pass_rate(batch: ShapingBatch, index_N: Tensor, num_groups: int) -> Tensor:
    """Share of right answers of each group, (G,), float32."""
    return groups.mean(batch.correct.to(torch.float32), index_N, num_groups)
