"""Competence: the moving average of pass rates that tells how able the policy is now. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CompetenceState:
    """Competences of a run: one, or one a replica."""

    competence: tuple[float, ...]
    """P_b, each in [0, 1]."""
    updates: int = 0
    """Updates made so far."""

    @property
    def mean(self) -> float:
        """Mean over the replicas."""
        return sum(self.competence) / len(self.competence)

    def to_dict(self) -> dict[str, Any]:
        return {"competence": list(self.competence), "updates": self.updates}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CompetenceState:
        """The state that ``to_dict`` wrote.

        Raises:
            ValueError: a missing field, or a competence outside [0, 1].
        """
        try:
            competence = tuple(float(value) for value in data["competence"])
            updates = int(data["updates"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"no competence state: {error!r}; found {sorted(data)}") from None
        if not competence or not all(0.0 <= value <= 1.0 for value in competence):
            raise ValueError(f"competence: expected numbers in [0, 1]; got {competence}")
        return cls(competence=competence, updates=updates)


def effective_decay(ema_decay: float, ema_per: str, num_prompts: int, ema_prompts: int) -> float:
    """λ of one update: ``ema_decay``, or ``ema_decay ** (num_prompts / ema_prompts)`` with ``ema_per="prompt"``."""
    return ema_decay if ema_per == "step" else ema_decay ** (num_prompts / ema_prompts)


def update_competence(competence: float, batch_pass_rate: float, decay: float) -> float:
    """P <- λ P + (1 - λ) * mean pass rate (Video-CARE, ``compute_effort_reward``)."""
    return decay * competence + (1.0 - decay) * batch_pass_rate
