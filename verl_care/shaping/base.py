"""What every shaping rule takes and gives: one batch of responses in, one bonus a response out.

A rule is a frozen dataclass whose fields are its constants; calling it is pure. What it must remember from step to step
is a value that goes in and comes out, so that it can be saved, restored and replayed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True)
class ShapingBatch:
    """The responses of one update, in any order.

    Raises:
        ValueError: tensors that are not (N,), or a number of prompt keys that is not N.
    """

    score: Tensor
    """Raw score of the reward manager, (N,), float32: accuracy plus format."""
    accuracy: Tensor
    """Task accuracy in [0, 1], (N,), float32; graded for OCR, free-form and regression."""
    correct: Tensor
    """Whether the response counts as right, (N,), bool."""
    length: Tensor
    """Response length in tokens up to and including EOS, (N,), float32."""
    group: Tensor
    """Prompt group of each response, (N,), int64, ids from 0; members need not be adjacent."""
    prompt_key: Sequence[str] = ()
    """Name of each response's record that stays the same over epochs and resumes, (N,)."""
    step: int = 0
    """verl's ``global_steps`` of the update."""
    norm_by_std: bool = True
    """verl's ``algorithm.norm_adv_by_std_in_grpo``, for rules that give advantages."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What single rules need: targets, references and flags, (N,) each; ``evicted_pass_rate``, (E,), pass rates of the
    groups that group filtering removed."""

    def __post_init__(self) -> None:
        shape = self.score.shape
        for name in ("score", "accuracy", "correct", "length", "group"):
            value = getattr(self, name)
            if value.ndim != 1 or value.shape != shape:
                raise ValueError(f"{name}: expected shape ({shape[0] if shape else 0},); got {tuple(value.shape)}")
        if self.prompt_key and len(self.prompt_key) != len(self):
            raise ValueError(f"prompt_key: expected {len(self)} keys; got {len(self.prompt_key)}")

    def __len__(self) -> int:
        return self.score.shape[0]

    def select(self, mask: Tensor) -> ShapingBatch:
        """The rows where ``mask`` (N,), bool, is true; ``extra`` tensors of length N are cut with them."""
        keep = mask.nonzero().squeeze(1).tolist()

        def cut(value: Any) -> Any:
            if isinstance(value, Tensor) and value.ndim and value.shape[0] == len(self):
                return value[mask]
            return value

        return ShapingBatch(
            score=self.score[mask],
            accuracy=self.accuracy[mask],
            correct=self.correct[mask],
            length=self.length[mask],
            group=self.group[mask],
            prompt_key=[self.prompt_key[i] for i in keep] if self.prompt_key else (),
            step=self.step,
            norm_by_std=self.norm_by_std,
            extra={name: cut(value) for name, value in self.extra.items()},
        )


@dataclass(frozen=True)
class Shaped:
    """What a rule gives for a batch."""

    bonus: Tensor
    """Total reward minus score, (N,), float32."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Scalars to log, with their whole names (``care/…``)."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Values a response for the rollout log: tensors or sequences of length N."""
    advantage: Tensor | None = None
    """Advantage of each response in place of the one that verl's group normalisation makes of score plus bonus, (N,),
    float32; None leaves it to verl."""


@runtime_checkable
class State(Protocol):
    """What a rule remembers between steps: an immutable value."""

    def to_dict(self) -> dict[str, Any]:
        """The state in JSON types."""


@dataclass(frozen=True)
class NoState:
    """State of a rule that remembers nothing."""

    def to_dict(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Properties:
    """What to expect of a rule at its default constants; a test checks each by random search."""

    ranks_wrong_by_length: bool
    """Two wrong answers of one group can get different bonuses because of their lengths."""
    signal_when_all_right: bool
    """A group whose answers are all right can get bonuses that differ."""
    right_below_wrong: bool
    """A right answer can end below a wrong one of its own group."""
    needs: tuple[str, ...] = ()
    """Names in ``ShapingBatch.extra`` that the rule reads and cannot do without."""


class Rule:
    """Base of the rules: a frozen dataclass, called with a batch and a state.

    Sub-classes set ``name``, ``source`` and ``properties`` and define ``shape``; a rule that remembers something also
    defines ``initial_state`` and ``state_from_dict``.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    """Where formula and constants come from."""
    properties: ClassVar[Properties]

    @property
    def wanted_extra(self) -> Mapping[str, float | None]:
        """Columns of ``extra`` that this rule reads, with the value where a record gives none; None: it needs one."""
        return dict.fromkeys(self.properties.needs)

    def initial_state(self) -> Any:
        """State before the first update."""
        return NoState()

    def state_from_dict(self, data: Mapping[str, Any]) -> Any:
        """The state that ``to_dict`` wrote.

        Raises:
            ValueError: a state that this rule cannot have written.
        """
        if data:
            raise ValueError(f"{self.name} keeps no state; got {sorted(data)}")
        return NoState()

    def state_metrics(self, state: Any) -> dict[str, float]:
        """Metrics of the state after an update; the last update of a step counts, where others are averaged."""
        return {}

    @classmethod
    def from_constants(cls, **constants: Any) -> Rule:
        """The rule with these constants, by the names that a config uses."""
        return cls(**constants)

    def shape(self, batch: ShapingBatch, state: Any) -> tuple[Shaped, Any]:
        """Bonus of each response and the next state."""
        raise NotImplementedError

    def __call__(self, batch: ShapingBatch, state: Any = None) -> tuple[Shaped, Any]:
        """Shapes a batch; without a state the rule starts from its initial one.

        Raises:
            ValueError: a field of ``extra`` that the rule needs is missing; the message names it.
        """
        missing = [name for name in self.properties.needs if name not in batch.extra]
        if missing:
            raise ValueError(f"rule {self.name} needs {', '.join(missing)} for each response; the batch has none")
        state = self.initial_state() if state is None else state
        if len(batch) == 0:
            return Shaped(bonus=torch.zeros(0)), state
        return self.shape(batch, state)


Shaper = Rule
"""A configured rule; the name that the batch interface uses."""

_RULES: dict[str, type[Rule]] = {}


def register_rule(cls: type[Rule]) -> type[Rule]:
    """Makes a rule known under its ``name``.

    Raises:
        ValueError: another rule has the name.
    """
    if _RULES.setdefault(cls.name, cls) is not cls:
        raise ValueError(f"rule {cls.name} is registered already, by {_RULES[cls.name].__module__}")
    return cls


def registered_rules() -> Mapping[str, type[Rule]]:
    """The rules registered so far, by name."""
    return _RULES
