"""Sparse-to-dense test-time scaling: more frames only for questions whose sampled answers disagree. Pure.

Video-RTS (arXiv 2507.06485; Ziyang412/Video-RTS, ``video_rts_eval.py``): M answers are sampled at few frames; where all
agree the question is decided, the others are asked again at twice the frames, up to the last level, where the majority
decides. Other than in the published code, answers are normalised before they vote, answers that cannot be read never
count as agreement, a clip without more frames ends its question, a question that fails stays in the denominator, and
the M prompts of a question are identical, so that an engine reads their frames once.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verl_care.evaluation.interface import Completion, Generate, Generated, Question, Request, error_message
from verl_care.evaluation.voting import answer_of, majority, vote_of
from verl_care.rewards.parsing import CLOSE
from verl_care.rewards.scorer import PROBLEM_TYPES, compute_score

VOTES = ("last", "pooled")
"""Where no level agrees: ``last`` counts the answers of the last level, as published; ``pooled`` those of all."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """What happened to a question at one level."""

    num_frames: int
    answers: tuple[str | None, ...]
    """Answers as they were given; None where there was none."""
    votes: tuple[str | None, ...]
    """What they vote for; None for an answer that cannot be read."""
    errors: tuple[str, ...]
    """Messages of failed requests."""
    num_tokens: int | None
    agreed: bool
    """Whether enough answers agree."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One question's end."""

    question: Question
    levels: tuple[Level, ...]
    answer: str | None
    """The winning answer as it was first given; None where no answer could be read."""
    acc_strict: float | None
    """Accuracy of the winning answer by the scorer's strict reading, 0.0 without one; None without ground truth."""
    acc_lenient: float | None
    """The same by the lenient reading; a multiple-choice vote is scored by its letter."""

    @property
    def decided(self) -> bool:
        """Whether the answers of its last level agree."""
        return self.levels[-1].agreed

    @property
    def failed(self) -> bool:
        """Whether every request of every level failed."""
        return all(len(level.errors) == len(level.answers) for level in self.levels)

    @property
    def num_frames(self) -> int:
        """Frames of the last level."""
        return self.levels[-1].num_frames

    @property
    def frames_read(self) -> int:
        """Frames over all levels and answers: what was paid for if the engine shares no prefix."""
        return sum(level.num_frames * len(level.answers) for level in self.levels)

    @property
    def num_tokens(self) -> int | None:
        """Tokens generated over all levels; None if the engine does not say."""
        counts = [level.num_tokens for level in self.levels]
        return None if None in counts else sum(count for count in counts if count is not None)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Figures of a run; means are over all questions, failed ones included."""

    num_questions: int
    num_failed: int
    """Questions of which every request failed; they count as wrong."""
    num_unanswered: int
    """Questions without any answer that could be read, failed ones included; they count as wrong."""
    acc_strict: float | None
    """Mean accuracy over all questions; None where a question has no ground truth."""
    acc_lenient: float | None
    average_frames: float
    """Mean of the frames at which a question ended."""
    average_frames_read: float
    """Mean of frames times answers over all levels: the compute that a comparison must match."""
    average_tokens: float | None
    """Mean of tokens generated over all levels and answers; None if the engine does not say."""
    decided_share: dict[int, float]
    """Share of all questions whose answers agreed, by level; keys are the levels' frames as configured."""
    undecided_share: float
    """Share of all questions that the final vote decided."""

    def to_dict(self) -> dict[str, Any]:
        """The figures for JSON."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**values, "decided_share": {str(frames): share for frames, share in self.decided_share.items()}}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A finished run: one result a question, in the order of the questions, and the figures."""

    results: tuple[Result, ...]
    report: Report


@dataclass(frozen=True, kw_only=True)
class SparseToDense:
    """Asks at few frames first and again at more where the answers disagree.

    One level is plain majority at fixed frames (``SparseToDense.fixed``), one level with one cold sample is greedy
    (``SparseToDense.greedy``). Defaults are those of the published code.
    """

    frames: tuple[int, ...] = (32, 64, 128)
    """Frames of the levels, rising. Published: doubled from 32 up to 64 (MMVU, VideoMMMU) or 128 (the others)."""
    samples: int = 5
    """M: answers a question and level."""
    threshold: float = 1.0
    """Share of the M answers that must agree, in (0.5, 1]; 1 is unanimity, as published."""
    vote: str = "last"
    """What counts where no level agrees, one of ``VOTES``; ties go to the denser level, then to the first seen."""
    tagged: bool = True
    """The answer stands in answer tags, as trained; False also takes a bare text as the answer."""
    frame_factor: int = 2
    """Frames come in multiples of this; Qwen's vision towers merge two at a time."""
    temperature: float = 0.8
    """Of the first answer."""
    temperature_step: float = 0.15
    """Added from answer to answer."""
    top_p: float = 0.70
    """Nucleus of the first answer."""
    top_p_step: float = 0.05
    """Added from answer to answer."""
    top_p_cap: float = 0.95
    """Largest nucleus."""
    top_k: int = 50
    """Most likely tokens to sample from; -1 for all."""
    presence_penalty: float = 0.4
    """As engines name it."""
    frequency_penalty: float = 0.2
    """As engines name it."""
    max_tokens: int = 1024
    """Longest answer."""
    seed: int = 42
    """Every request gets a seed of its own, made of this, its question, frames and number: order changes nothing."""

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in zip(self.frames, self.frames[1:], strict=False))
        _require(self.frame_factor >= 1, "frame_factor", self.frame_factor, "a whole number >= 1")
        _require(bool(self.frames) and rising, "frames", self.frames, "rising numbers of frames")
        fits = all(frames > 0 and frames % self.frame_factor == 0 for frames in self.frames)
        _require(fits, "frames", self.frames, f"multiples of frame_factor={self.frame_factor}")
        _require(self.samples >= 1, "samples", self.samples, "a whole number >= 1")
        _require(0.5 < self.threshold <= 1, "threshold", self.threshold, "a share in (0.5, 1]")
        _require(self.vote in VOTES, "vote", self.vote, " or ".join(VOTES))
        for name in ("temperature", "temperature_step", "top_p_step"):
            _require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "a finite number >= 0")
        for name in ("top_p", "top_p_cap"):
            _require(0 < getattr(self, name) <= 1, name, getattr(self, name), "a share in (0, 1]")
        _require(self.max_tokens >= 1, "max_tokens", self.max_tokens, "a whole number >= 1")

    @classmethod
    def fixed(cls, frames: int, samples: int = 5, **options: Any) -> SparseToDense:
        """Plain majority of ``samples`` answers at fixed frames."""
        return cls(frames=(frames,), samples=samples, **options)

    @classmethod
    def greedy(cls, frames: int, **options: Any) -> SparseToDense:
        """One answer at temperature 0 and fixed frames, without penalties."""
        cold = {"temperature": 0.0, "top_p": 1.0, "top_p_cap": 1.0, "top_k": -1}
        return cls(
            **{"frames": (frames,), "samples": 1, **cold, "presence_penalty": 0.0, "frequency_penalty": 0.0, **options}
        )

    def at_equal_compute(self, report: Report, frames: int) -> SparseToDense:
        """Plain majority at fixed frames that reads as many frames a question as a finished run did on average.

        Args:
            report: of the run to compare with.
            frames: frames of every answer.

        Returns:
            The same sampling with max(1, round(average_frames_read / frames)) answers.
        """
        options = {name: getattr(self, name) for name in self.__dataclass_fields__}
        samples = max(1, round(report.average_frames_read / frames))
        return SparseToDense(**{**options, "frames": (frames,), "samples": samples})

    @property
    def needed(self) -> int:
        """Answers that must agree: the smallest whole number >= threshold * samples."""
        # Rounded first, so that a product such as 0.6 * 5 = 3.0000000000000004 does not ask for one more.
        return math.ceil(round(self.threshold * self.samples, 9))

    def sampling(self, question: Question, num_frames: int, sample: int) -> dict[str, Any]:
        """Sampling parameters of one request (the ladder: Video-RTS, ``video_rts_eval.py``)."""
        name = f"{self.seed}/{question.key}/{num_frames}/{sample}"
        return {
            "temperature": round(self.temperature + self.temperature_step * sample, 6),
            "top_p": round(min(self.top_p_cap, self.top_p + self.top_p_step * sample), 6),
            "top_k": self.top_k,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "max_tokens": self.max_tokens,
            "stop": [CLOSE],
            "seed": zlib.crc32(name.encode("utf-8", "surrogatepass")) & 0x7FFFFFFF,
        }

    def frames_at(self, level: int, question: Question) -> int:
        """Frames that a question is asked at: the level's, or all that the clip has."""
        if question.available_frames is None:
            return self.frames[level]
        available = question.available_frames // self.frame_factor * self.frame_factor
        return max(self.frame_factor, min(self.frames[level], available))

    def run(self, questions: Sequence[Question], generate: Generate) -> Outcome:
        """Asks all questions, one call of the engine a level.

        Args:
            questions: in any order.
            generate: the engine. A request that failed is its entry's exception or None: it counts as an answer that
                cannot be read. What the engine raises itself ends the run.

        Returns:
            One result a question, failed ones included, and the figures.

        Raises:
            ValueError: no questions, two with one key, an unknown problem type, a faulty ground truth, or an engine
                that gives more or fewer entries than it got requests.
        """
        _check(questions)
        history: dict[str, list[Level]] = {question.key: [] for question in questions}
        ended_at: dict[str, int] = {}
        for number in range(len(self.frames)):
            open_ = [question for question in questions if question.key not in ended_at]
            if not open_:
                break
            requests = [request for question in open_ for request in self._requests(question, number)]
            generated = list(generate(requests))
            if len(generated) != len(requests):
                raise ValueError(f"generate: expected {len(requests)} entries, one a request; got {len(generated)}")
            for place, question in enumerate(open_):
                mine = generated[place * self.samples : (place + 1) * self.samples]
                level = self._read(question, self.frames_at(number, question), mine)
                history[question.key].append(level)
                last = number + 1 == len(self.frames)
                if level.agreed or last or self.frames_at(number + 1, question) <= level.num_frames:
                    ended_at[question.key] = number
        results = tuple(self._result(question, tuple(history[question.key])) for question in questions)
        return Outcome(results=results, report=self._report(results, ended_at))

    def _requests(self, question: Question, level: int) -> Iterator[Request]:
        num_frames = self.frames_at(level, question)
        for sample in range(self.samples):
            sampling = self.sampling(question, num_frames, sample)
            yield Request(question=question, num_frames=num_frames, sample=sample, sampling=sampling)

    def _read(self, question: Question, num_frames: int, generated: Sequence[Generated]) -> Level:
        answers, errors, counts = [], [], []
        for entry in generated:
            completion = Completion(entry) if isinstance(entry, str) else entry
            if isinstance(completion, Completion):
                answers.append(answer_of(completion.text, self.tagged))
                counts.append(completion.num_tokens)
            else:
                answers.append(None)
                errors.append(error_message(completion))
        votes = tuple(vote_of(answer, question.problem_type, question.options) for answer in answers)
        return Level(
            num_frames=num_frames,
            answers=tuple(answers),
            votes=votes,
            errors=tuple(errors),
            num_tokens=None if None in counts else sum(count for count in counts if count is not None),
            agreed=majority(votes)[1] >= self.needed,
        )

    def _result(self, question: Question, levels: tuple[Level, ...]) -> Result:
        voting = [level for level in reversed(levels) if any(vote is not None for vote in level.votes)]
        if self.vote == "last" or levels[-1].agreed:
            # Of an unread last level the one before decides: an answer at fewer frames is better than none.
            voting = voting[:1]
        votes = [vote for level in voting for vote in level.votes]
        answers = [answer for level in voting for answer in level.answers]
        winner, _ = majority(votes)
        answer = None if winner is None else answers[votes.index(winner)]
        strict, lenient = _accuracies(question, answer)
        return Result(question=question, levels=levels, answer=answer, acc_strict=strict, acc_lenient=lenient)

    def _report(self, results: Sequence[Result], ended_at: Mapping[str, int]) -> Report:
        total = len(results)
        agreed_at = [ended_at[result.question.key] for result in results if result.decided]
        return Report(
            num_questions=total,
            num_failed=sum(result.failed for result in results),
            num_unanswered=sum(result.answer is None for result in results),
            acc_strict=_mean([result.acc_strict for result in results]),
            acc_lenient=_mean([result.acc_lenient for result in results]),
            average_frames=sum(result.num_frames for result in results) / total,
            average_frames_read=sum(result.frames_read for result in results) / total,
            average_tokens=_mean([result.num_tokens for result in results]),
            decided_share={frames: agreed_at.count(level) / total for level, frames in enumerate(self.frames)},
            undecided_share=1 - len(agreed_at) / total,
        )


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"{name}: expected {expected}; got {value!r}")


def _check(questions: Sequence[Question]) -> None:
    if not questions:
        raise ValueError("questions: none given")
    seen: set[str] = set()
    for question in questions:
        if question.key in seen:
            raise ValueError(f"question {question.key!r} is there twice; give each a key of its own")
        seen.add(question.key)
        if question.problem_type not in PROBLEM_TYPES:
            raise ValueError(
                f"question {question.key!r}: problem_type is {question.problem_type!r}; "
                f"set one of {', '.join(PROBLEM_TYPES)}"
            )
        # Scores nothing yet: a faulty ground truth shows before anything has been asked.
        _accuracies(question, None)


def _accuracies(question: Question, answer: str | None) -> tuple[float | None, float | None]:
    if question.ground_truth is None:
        return None, None
    extra_info = {
        **question.extra_info,
        "index": question.key,
        "problem_type": question.problem_type,
        "options": list(question.options),
    }
    response = "" if answer is None else f"<answer>{answer}</answer>"
    scores = compute_score("question", response, question.ground_truth, extra_info)
    return float(scores["acc_strict"] or 0.0), float(scores["acc_lenient"] or 0.0)


def _mean(values: Sequence[float | None]) -> float | None:
    return None if None in values else math.fsum(value for value in values if value is not None) / len(values)
