"""T-GRPO alone: accuracy, format and the temporal contrast, without a length rule. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from verl_care.shaping.base import Properties, Rule, Shaped, ShapingBatch, register_rule


@register_rule
@dataclass(frozen=True, kw_only=True)
class TGRPORule(Rule):
    """bonus = 0: what T-GRPO adds is the temporal contrast, which stands before every rule (``care.contrast``)."""

    name: ClassVar[str] = "t_grpo"
    source: ClassVar[str] = "arXiv 2503.21776 §3; Video-R1 src/r1-v/src/open_r1/trainer/grpo_trainer.py"
    properties: ClassVar[Properties] = Properties(
        ranks_wrong_by_length=False, signal_when_all_right=False, right_below_wrong=False
    )

    def shape(self, batch: ShapingBatch, state: Any) -> tuple[Shaped, Any]:
        return Shaped(bonus=torch.zeros_like(batch.score)), state
