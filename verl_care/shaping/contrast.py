"""Temporal contrast of T-GRPO: a bonus where the order of the frames helped. Pure.

Source: arXiv 2503.21776 §3; Video-R1 ``grpo_trainer.py`` (factor 0.8 in the code, 1.0 in the paper).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from verl_care.config import ContrastConfig
from verl_care.shaping import groups
from verl_care.shaping.base import Rule, Shaped, ShapingBatch


def group_accuracies(accuracy_N: Tensor, shuffled_accuracy_N: Tensor, group_N: Tensor) -> tuple[Tensor, Tensor]:
    """Mean accuracy of each response's group on ordered and on shuffled frames.

    Args:
        accuracy_N: accuracy on ordered frames, (N,), in [0, 1].
        shuffled_accuracy_N: accuracy on shuffled frames, (N,), in [0, 1]; NaN where the session gave no such response.
        group_N: prompt group of each response, (N,), integers.

    Returns:
        Both means, (N,), float64: in float32 equal accuracies of groups of different sizes may have unequal means. The
        second is NaN in groups without a response on shuffled frames.
    """
    index_N, num_groups = groups.index_groups(group_N)
    present_N = ~shuffled_accuracy_N.isnan()
    ordered_G = groups.mean(accuracy_N.double(), index_N, num_groups)
    zeros_G = torch.zeros(num_groups, dtype=torch.float64, device=accuracy_N.device)
    sum_G = zeros_G.index_add(0, index_N[present_N], shuffled_accuracy_N[present_N].double())
    count_G = torch.bincount(index_N[present_N], minlength=num_groups)
    return ordered_G[index_N], (sum_G / count_G)[index_N]


def compute_contrast_bonus(
    accuracy_N: Tensor, shuffled_accuracy_N: Tensor, group_N: Tensor, config: ContrastConfig | None = None
) -> tuple[Tensor, Tensor]:
    """Bonus of the temporal contrast.

    A group passes when mean(acc ordered) >= factor * mean(acc shuffled) + margin; each of its responses with an
    accuracy above ``correct_threshold`` earns ``bonus``. A group without responses on shuffled frames (an image, a
    text) does not pass.

    Args:
        accuracy_N: accuracy on ordered frames, (N,), in [0, 1].
        shuffled_accuracy_N: accuracy of the response that the same session gave on shuffled frames, (N,), in [0, 1];
            NaN where it gave none.
        group_N: prompt group of each response, (N,), integers.
        config: factor, margin, bonus and threshold; the published code's by default.

    Returns:
        The bonus (N,) and whether each response's group passes (N,), bool.
    """
    config = ContrastConfig() if config is None else config
    ordered_N, shuffled_N = group_accuracies(accuracy_N, shuffled_accuracy_N, group_N)
    # False where a group has nothing to compare with: NaN.
    passes_N = ordered_N >= config.factor * shuffled_N + config.margin
    return config.bonus * (passes_N & (accuracy_N > config.correct_threshold)).to(accuracy_N.dtype), passes_N


@dataclass(frozen=True)
class ContrastedRule:
    """A rule with the temporal contrast before it: the rule sees scores that hold the contrast's bonus already."""

    rule: Rule
    config: ContrastConfig

    @property
    def name(self) -> str:
        """Name of the rule behind."""
        return self.rule.name

    @property
    def wanted_extra(self) -> Mapping[str, float | None]:
        """Columns of ``extra`` that the rule reads."""
        return self.rule.wanted_extra

    def initial_state(self) -> Any:
        """State of the rule before the first update."""
        return self.rule.initial_state()

    def state_from_dict(self, data: Mapping[str, Any]) -> Any:
        """State that the rule's ``to_dict`` wrote."""
        return self.rule.state_from_dict(data)

    def state_metrics(self, state: Any) -> dict[str, float]:
        """Metrics of the rule's state."""
        return self.rule.state_metrics(state)

    def __call__(self, batch: ShapingBatch, state: Any = None) -> tuple[Shaped, Any]:
        """Shapes a batch whose ``extra`` may hold ``shuffled_accuracy``, (N,), NaN where there is none."""
        shuffled_N = batch.extra.get("shuffled_accuracy")
        if shuffled_N is None or len(batch) == 0 or bool(shuffled_N.isnan().all()):
            return self.rule(batch, state)
        temporal_N, passes_N = compute_contrast_bonus(batch.accuracy, shuffled_N, batch.group, self.config)
        shaped, state = self.rule(replace(batch, score=batch.score + temporal_N), state)
        ordered_mean_N, shuffled_mean_N = group_accuracies(batch.accuracy, shuffled_N, batch.group)
        has_N = ~shuffled_mean_N.isnan()
        # Passed without being better on ordered frames: equal accuracies, or worse ones within the factor.
        vacuous_N = passes_N & (ordered_mean_N <= shuffled_mean_N)
        metrics = {
            **shaped.metrics,
            "care/temporal/acc_ordered": float(batch.accuracy[has_N].mean()),
            "care/temporal/acc_shuffled": float(shuffled_N.nanmean()),
            "care/temporal/pass_share": float(passes_N[has_N].float().mean()),
            "care/temporal/vacuous_share": float(vacuous_N[has_N].float().mean()),
            "care/temporal/bonus": float(temporal_N[has_N].mean()),
        }
        columns = {**shaped.columns, "temporal_bonus": temporal_N}
        return replace(shaped, bonus=shaped.bonus + temporal_N, metrics=metrics, columns=columns), state
