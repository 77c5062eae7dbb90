"""What an engine is asked and what it gives back: one interface for evaluation, selection, test-time scaling. Pure.

An engine is a callable that takes any number of requests at once and gives one entry for each, in order. Everything
that asks a model something builds `Request`s; everything that can answer them (`evaluation.engines`, a client of a
server, a stand-in of a test) fits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

TRUNCATED = "length"
"""``Completion.finish_reason`` of an answer that was cut at its longest length, by the name that engines use."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question about one clip."""

    key: str
    """Its name; every question has one of its own."""
    prompt: Any
    """Whatever the engine needs to ask it, the clip included; never looked at. ``evaluation.engines`` take messages
    with structured content whose media are dicts of qwen-vl-utils."""
    problem_type: str = "multiple choice"
    """One of the scorer's ``PROBLEM_TYPES``: decides which answers say the same."""
    options: Sequence[str] = ()
    """Options of a multiple-choice question."""
    ground_truth: str | None = None
    """Expected answer; None asks without scoring."""
    available_frames: int | None = None
    """Frames that the clip has at most; None for more than any level asks for."""
    extra_info: Mapping[str, Any] = field(default_factory=dict)
    """What else the scorer needs of the record (``duration``, ``span_unit``)."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One answer to be sampled. Requests of one question follow each other and differ in their sampling alone."""

    question: Question
    num_frames: int | None = None
    """Frames to sample from the clip; None for what the prompt itself asks for."""
    sample: int = 0
    """Number of the answer, from 0."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Sampling parameters by the names that OpenAI-compatible servers and vLLM use."""


@dataclass(frozen=True)
class Completion:
    """One sampled answer."""

    text: str
    num_tokens: int | None = None
    """Tokens generated; None if the engine does not say."""
    finish_reason: str | None = None
    """``stop``, or ``TRUNCATED``; None if the engine does not say."""
    num_prompt_tokens: int | None = None
    """Tokens of the prompt, those of its media included; None if the engine does not say."""


Generated = Completion | str | BaseException | None
"""What an engine may give for a request: a completion, its bare text, or for a failed one the exception or None."""

Generate = Callable[[Sequence[Request]], Sequence[Generated]]
"""An engine: takes all requests of a level at once, gives one entry for each, in order."""


class RequestError(RuntimeError):
    """A request that failed in an earlier run, by the line that was kept of it."""


def error_message(failure: BaseException | None) -> str:
    """One line about a failed request."""
    if failure is None:
        return "no completion"
    text = " ".join(str(failure).split())
    return text if isinstance(failure, RequestError) else f"{type(failure).__name__}: {text}"
