"""The folder of a command that asks a model: whose answers it holds, the answers themselves, and progress.

``run.json`` says which model was asked and with what settings, ``answers.jsonl`` has every answer as it came.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_care.data.records import replace_file
from verl_care.evaluation.engines import EngineConfig, build_engine
from verl_care.evaluation.recorded import AnswerLog, EvaluationError, OnProgress, RecordedEngine

if TYPE_CHECKING:
    from verl_care.evaluation.evaluate import EvalConfig
    from verl_care.evaluation.select_records import SelectConfig

RUN, ANSWERS = "run.json", "answers.jsonl"
VERSION = 1
"""Of the files of a run."""


@contextmanager
def asking(
    config: EvalConfig | SelectConfig,
    *,
    on_progress: OnProgress = lambda done, total, failed: None,
    expected: int | None = None,
) -> Iterator[RecordedEngine]:
    """An engine whose answers the command's folder keeps; noted there when all is asked, freed in any case.

    Args:
        config: settings with an engine.
        on_progress: told after each batch.
        expected: requests of all calls together, for progress; None for as many as were given so far.

    Raises:
        EvaluationError: the folder's answers are of another model, engine or precision, or at other positions.
    """
    engine_config = config.engine
    assert engine_config is not None
    out_dir = Path(config.out_dir)
    claim(out_dir, engine_config, {name: value for name, value in asdict(config).items() if name != "engine"})
    engine = RecordedEngine(
        AnswerLog(out_dir / ANSWERS),
        lambda: build_engine(engine_config),
        batch_size=config.batch_size,
        on_progress=on_progress,
        retry_failed=config.retry_failed,
        expected=expected,
    )
    try:
        yield engine
        note_engine(out_dir, engine.description)
    finally:
        engine.close()


def claim(out_dir: Path, engine: EngineConfig, settings: Mapping[str, Any]) -> None:
    """Notes which model a folder's answers are of, or refuses a folder of another one.

    Raises:
        EvaluationError: its answers are of another model, engine or precision, or at other positions.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    path = out_dir / RUN
    identity = {"version": VERSION, "model": engine.model, "digest": model_digest(engine.model)}
    identity |= {"name": engine.name, "dtype": engine.dtype, "positions": engine.positions}
    if path.exists():
        before = read_json(path)
        for name, value in identity.items():
            if before.get(name) != value:
                raise EvaluationError(
                    f"{out_dir}: holds answers of another run ({name}: {before.get(name)!r}, now {value!r}); "
                    "use another folder, or remove it"
                )
        identity = {**before, **identity}
    write_text(path, json.dumps({**identity, "settings": dict(settings)}, indent=1))


def note_engine(out_dir: Path, description: Mapping[str, Any]) -> None:
    """Notes the versions of the engine that answered, if one was made."""
    if description:
        write_text(out_dir / RUN, json.dumps({**read_json(out_dir / RUN), "engine": dict(description)}, indent=1))


def model_digest(model: str) -> str:
    """Digest of a local model's files by name, size and time; of a name on a hub the name alone."""
    folder = Path(model)
    if not folder.is_dir():
        return model
    known = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".pt", ".json"))
    stats = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in known]
    return hashlib.blake2b(json.dumps(stats).encode(), digest_size=8).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    with replace_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """An object in a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def progress_bar(label: str) -> Iterator[OnProgress]:
    """A bar on standard error with the time that is left; what it gives is told about progress."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=Console(stderr=True))
    task = bar.add_task(label, total=None)

    def show(done: int, total: int, failed: int) -> None:
        if not bar.live.is_started:
            # Not before there is something to show: an error in the data is one line alone. What an earlier try left
            # tells nothing about the speed of this one.
            bar.reset(task, completed=done, total=total)
            bar.start()
        bar.update(task, completed=done, total=total, description=f"{label}, {failed} failed" if failed else label)

    try:
        yield show
    finally:
        if bar.live.is_started:
            bar.stop()
