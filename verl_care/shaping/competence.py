"""Competence: the moving average of pass rates that tells how able the policy is now. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from verl_care.config import STAGES


@dataclass(frozen=True)
class CompetenceState:
    """Competences of a run: one, one a replica, or one a data source."""

    competence: tuple[float, ...]
    """P_b, each in [0, 1]."""
    updates: int = 0
    """Updates made so far."""
    stages: tuple[str, ...] = ()
    """Stage of each competence's last update, where the next one depends on it; empty before the first update."""
    sources: tuple[str, ...] = ()
    """Data source of each competence, where there is one a source."""

    @property
    def mean(self) -> float:
        """Mean over the competences."""
        return sum(self.competence) / len(self.competence)

    def to_dict(self) -> dict[str, Any]:
        optional = {"stages": list(self.stages), "sources": list(self.sources)}
        return {
            "competence": list(self.competence),
            "updates": self.updates,
            **{name: values for name, values in optional.items() if values},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CompetenceState:
        """The state that ``to_dict`` wrote.

        Raises:
            ValueError: a missing field, a competence outside [0, 1], or fields that do not fit together.
        """
        try:
            competence = tuple(float(value) for value in data["competence"])
            updates = int(data["updates"])
            stages = tuple(str(name) for name in data.get("stages", ()))
            sources = tuple(str(name) for name in data.get("sources", ()))
        except (KeyError, TypeError) as error:
            raise ValueError(f"no competence state: {error!r}; found {sorted(data)}") from None
        if not competence or not all(0.0 <= value <= 1.0 for value in competence):
            raise ValueError(f"competence: expected numbers in [0, 1]; got {competence}")
        if unknown := set(stages) - set(STAGES):
            raise ValueError(f"stages: expected names of {STAGES}; got {sorted(unknown)}")
        for name, values in (("stages", stages), ("sources", sources)):
            if values and len(values) != len(competence):
                raise ValueError(f"{name}: expected {len(competence)}, one a competence; got {len(values)}")
        return cls(competence=competence, updates=updates, stages=stages, sources=sources)


def effective_decay(ema_decay: float, ema_per: str, num_prompts: int, ema_prompts: int) -> float:
    """λ of one update: ``ema_decay``, or ``ema_decay ** (num_prompts / ema_prompts)`` with ``ema_per="prompt"``."""
    return ema_decay if ema_per == "step" else ema_decay ** (num_prompts / ema_prompts)


def update_competence(competence: float, batch_pass_rate: float, decay: float) -> float:
    """P <- λ P + (1 - λ) * mean pass rate (Video-CARE, ``compute_effort_reward``)."""
    return decay * competence + (1.0 - decay) * batch_pass_rate
