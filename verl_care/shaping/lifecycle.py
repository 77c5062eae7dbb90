"""A prompt's utility over its visits, and how often it is still drawn: FaVChat's data-efficient GRPO, mended. Pure.

Source: heavenhellchen/FaVChat ``favchat_grpo_trainer.py``, ``favchat_components.py``. Kept: a smoothed utility for each
prompt, low ones removed, high ones cooled down, its thresholds. Mended, because the published form trains next to
nothing:

- utility is 4 Var(accuracy) of the group, in [0, 1]; the published product of geometric means of pair distances is
  about 0 wherever two rewards are equal;
- the first visit sets the utility; the published average starts at 0, so that no first visit passes 0.2;
- the stage says how often a prompt is drawn, before anything is generated for it; the published one multiplies
  advantages, by tanh of a value head without a loss, which may turn their sign;
- a removed prompt is looked at again now and then, and all of it is saved with the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from verl_care.config import FavchatConfig
from verl_care.shaping import groups

STAGES = ("keep", "cool", "remove")


def compute_utility(accuracy_N: Tensor, group_N: Tensor) -> Tensor:
    """How much the responses to each response's prompt disagree: 4 Var(accuracy), 4 p (1 - p) for right and wrong.

    Args:
        accuracy_N: (N,), in [0, 1].
        group_N: prompt group of each response, (N,), integers.

    Returns:
        (N,), in [0, 1], equal over a group.
    """
    index_N, num_groups = groups.index_groups(group_N)
    mean_G = groups.mean(accuracy_N.double(), index_N, num_groups)
    return 4 * groups.mean((accuracy_N.double() - mean_G[index_N]).square(), index_N, num_groups)[index_N]


@dataclass(frozen=True)
class PromptLife:
    """What is known of one prompt."""

    utility: float
    """Smoothed, in [0, 1]."""
    visits: int
    """How often it was trained on."""
    passed_over: int = 0
    """How often it came up and was not drawn since."""


@dataclass(frozen=True)
class Lifecycle:
    """All prompts seen so far, by name; an immutable value."""

    prompts: Mapping[str, PromptLife] = field(default_factory=dict)

    def stage(self, prompt_key: str, config: FavchatConfig) -> str:
        """``keep``, ``cool`` or ``remove``; a prompt that was never seen is kept."""
        life = self.prompts.get(prompt_key)
        if life is None or config.remove_below <= life.utility <= config.cool_above:
            return "keep"
        return "remove" if life.utility < config.remove_below else "cool"

    def draw(self, prompt_keys: Iterable[str], config: FavchatConfig) -> tuple[list[bool], Lifecycle]:
        """Which of the prompts that come up are drawn: kept ones always, others once in so many times."""
        drawn, prompts = [], dict(self.prompts)
        for key in prompt_keys:
            every = {"keep": 1, "cool": config.cool_every, "remove": config.revisit_every}[self.stage(key, config)]
            life = prompts.get(key)
            take = life is None or life.passed_over + 1 >= every
            drawn.append(take)
            if life is not None:
                prompts[key] = replace(life, passed_over=0 if take else life.passed_over + 1)
        return drawn, Lifecycle(prompts)

    def observe(self, prompt_keys: Iterable[str], utilities: Iterable[float], config: FavchatConfig) -> Lifecycle:
        """The state after a visit to each of the prompts: s <- smoothing * s + (1 - smoothing) * u, first s = u."""
        prompts = dict(self.prompts)
        for key, utility in zip(prompt_keys, utilities, strict=True):
            life = prompts.get(key)
            if life is None:
                prompts[key] = PromptLife(utility, 1)
            else:
                smoothed = config.smoothing * life.utility + (1 - config.smoothing) * utility
                prompts[key] = replace(life, utility=smoothed, visits=life.visits + 1)
        return Lifecycle(prompts)

    def to_dict(self) -> dict[str, Any]:
        """The state in JSON types."""
        return {key: [life.utility, life.visits, life.passed_over] for key, life in self.prompts.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Lifecycle:
        """The state that ``to_dict`` wrote.

        Raises:
            ValueError: something else.
        """
        try:
            return cls({key: PromptLife(float(u), int(v), int(p)) for key, (u, v, p) in data.items()})
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"not a state of prompts' lifecycles: {error}") from None


def group_utilities(accuracy_N: Tensor, group_N: Tensor, prompt_keys: list[str]) -> dict[str, float]:
    """Utility of each prompt of a batch; the mean where one stands in it more than once."""
    utility_N = compute_utility(accuracy_N, group_N)
    first: dict[int, int] = {}
    for row, group in enumerate(group_N.tolist()):
        first.setdefault(group, row)
    values: dict[str, list[float]] = {}
    for row in first.values():
        values.setdefault(prompt_keys[row], []).append(float(utility_N[row]))
    return {key: float(torch.tensor(found, dtype=torch.float64).mean()) for key, found in values.items()}
