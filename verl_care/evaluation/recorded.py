"""An engine whose answers are kept: every answer is a line of a file, and what stands there is not asked again.

The file is append-only JSON lines, one a request, written a batch at a time. A killed run loses its last batch at most,
and the same command goes on from there. Batches are cut from the list of all requests, so a resumed run asks the same
batches as an uninterrupted one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from verl_care.evaluation.engines import Engine
from verl_care.evaluation.interface import Completion, Generated, Request, RequestError, error_message
from verl_care.evaluation.prompts import digest_source

OnProgress = Callable[[int, int, int], None]
"""Called with answers there, answers wanted, and failed ones among those there."""


class EvaluationError(RuntimeError):
    """An evaluation that cannot go on; the message says why and what to do."""


def request_id(request: Request) -> str:
    """Name of a request: the same prompt, frames and sampling have the same one, in every run."""
    parts = {
        "key": request.question.key,
        "prompt": digest_source(request.question.prompt),
        "frames": request.num_frames,
        "sample": request.sample,
        "sampling": dict(request.sampling),
    }
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


class AnswerLog:
    """The file of answers; one process writes it at a time.

    Args:
        path: file, made with its folder if need be. A half-written last line, of a run that was killed, is cut off.

    Raises:
        EvaluationError: another process is writing it, or a line that is no answer.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise EvaluationError(
                f"{self.path}: another process is writing it; wait for it, or use another folder"
            ) from None
        self._places: dict[str, tuple[int, int]] = {}
        self._failed: set[str] = set()
        self._end = self._read()

    def _read(self) -> int:
        """Notes where every answer stands, cuts off half a last line, and gives the end of the file."""
        self._file.seek(0)
        end = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                self._file.truncate(end)
                break
            try:
                self._note(json.loads(line), end, len(line))
            except (ValueError, KeyError, TypeError):
                raise EvaluationError(f"{self.path}, line {number}: not an answer; remove the line") from None
            end += len(line)
        return end

    def _note(self, entry: Mapping[str, Any], start: int, length: int) -> None:
        # Answers stay on the disk: a selection has millions.
        self._places[entry["id"]] = (start, length)
        if entry.get("error") is None:
            self._failed.discard(entry["id"])
        else:
            self._failed.add(entry["id"])

    def get(self, request: Request) -> Generated:
        """The answer to a request, or its failure.

        Raises:
            KeyError: it was not asked yet.
        """
        start, length = self._places[request_id(request)]
        entry = json.loads(os.pread(self._file.fileno(), length, start))
        if entry.get("error") is not None:
            return RequestError(entry["error"])
        return Completion(entry["text"], entry.get("tokens"), entry.get("finish"), entry.get("prompt_tokens"))

    def has(self, request: Request, failed_too: bool = True) -> bool:
        """Whether a request was asked; with ``failed_too=False`` whether it was answered."""
        name = request_id(request)
        return name in self._places and (failed_too or name not in self._failed)

    def add(self, requests: Sequence[Request], generated: Sequence[Generated]) -> None:
        """Appends the outcomes of a batch; they are on the disk when it returns."""
        lines = []
        for request, outcome in zip(requests, generated, strict=True):
            completion = Completion(outcome) if isinstance(outcome, str) else outcome
            entry: dict[str, Any] = {
                "id": request_id(request),
                "key": request.question.key,
                "frames": request.num_frames,
                "sample": request.sample,
            }
            if isinstance(completion, Completion):
                entry |= {
                    "text": completion.text,
                    "tokens": completion.num_tokens,
                    "finish": completion.finish_reason,
                    "prompt_tokens": completion.num_prompt_tokens,
                }
            else:
                entry["error"] = error_message(completion)
            # ASCII alone: a lone surrogate in a text has no UTF-8.
            lines.append(json.dumps(entry).encode() + b"\n")
            self._note(entry, self._end, len(lines[-1]))
            self._end += len(lines[-1])
        self._file.write(b"".join(lines))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Lets others write."""
        self._file.close()


class RecordedEngine:
    """An engine that asks only what its log lacks, and is not even made where nothing is lacking.

    Args:
        log: where answers are kept.
        build: makes the engine.
        batch_size: requests written at a time, at least; those of one question stay together.
        on_progress: told after each batch.
        retry_failed: asks again what failed.
        expected: requests of all calls together, for progress; None for as many as were given so far.
    """

    def __init__(
        self,
        log: AnswerLog,
        build: Callable[[], Engine],
        *,
        batch_size: int = 64,
        on_progress: OnProgress = lambda done, total, failed: None,
        retry_failed: bool = False,
        expected: int | None = None,
    ) -> None:
        self.log = log
        self._build = build
        self._batch_size = batch_size
        self._on_progress = on_progress
        self._retry_failed = retry_failed
        self._engine: Engine | None = None
        self._expected = expected
        self._total = 0
        self._done = 0
        self._failed = 0
        self.description: dict[str, Any] = {}

    def __call__(self, requests: Sequence[Request]) -> list[Generated]:
        """One entry a request, in order: from the log, or asked now.

        Raises:
            EvaluationError: the engine fails for everything it is asked.
        """
        self._total += len(requests)
        missing = []
        for batch in cut_batches(requests, self._batch_size):
            there = [self.log.has(request, failed_too=not self._retry_failed) for request in batch]
            self._count([request for request, known in zip(batch, there, strict=True) if known])
            if not all(there):
                missing.append([request for request, known in zip(batch, there, strict=True) if not known])
        self._tell()
        if missing:
            for batch, generated in stream(self._start(), missing):
                failures = [outcome for outcome in generated if not isinstance(outcome, Completion | str)]
                if len(failures) == len(batch) and self._done == self._failed:
                    message = error_message(failures[0])
                    raise EvaluationError(f"all {len(batch)} requests of the first batch failed; the first: {message}")
                self.log.add(batch, generated)
                self._count(batch)
                self._tell()
        return [self.log.get(request) for request in requests]

    def _tell(self) -> None:
        self._on_progress(self._done, max(self._total, self._expected or 0), self._failed)

    def _start(self) -> Engine:
        if self._engine is None:
            self._engine = self._build()
            self.description = self._engine.describe()
        return self._engine

    def _count(self, batch: Sequence[Request]) -> None:
        self._done += len(batch)
        self._failed += sum(not self.log.has(request, failed_too=False) for request in batch)

    def close(self) -> None:
        """Frees the engine, if it was made, and the log."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        self.log.close()


def cut_batches(requests: Sequence[Request], size: int) -> list[list[Request]]:
    """Batches of at least ``size`` requests, the last one aside; neighbours of one question stay together."""
    batches: list[list[Request]] = []
    batch: list[Request] = []
    for request in requests:
        if len(batch) >= size and request.question is not batch[-1].question:
            batches.append(batch)
            batch = []
        batch.append(request)
    return [*batches, batch] if batch else batches


def stream(engine: Engine, batches: Sequence[list[Request]]) -> Iterator[tuple[list[Request], Sequence[Generated]]]:
    """Every batch with its outcomes, as soon as it is done; media of the next are read while one is answered."""
    spread: Callable[[Sequence[list[Request]]], Iterable[Any]] | None = getattr(engine, "stream", None)
    if spread is not None:
        yield from spread(batches)
        return
    for number, batch in enumerate(batches):
        engine.prefetch(batch)
        if number + 1 < len(batches):
            engine.prefetch(batches[number + 1])
        generated = engine(batch)
        if len(generated) != len(batch):
            raise ValueError(f"engine: expected {len(batch)} entries, one a request; got {len(generated)}")
        yield batch, generated
