"""``verl-care select``: runs a model several times on every record, and keeps those whose outcomes vary.

A selection lives in a folder: ``answers.jsonl`` (every run, as it comes; a killed selection goes on from there),
``scores.parquet`` (pass rate, variance and outcome of every record), ``subset.parquet`` (what is kept),
``selection.json`` and ``selection.html``. What is kept is decided by ``data.selection``.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from verl_care.commands import run_command
from verl_care.data.records import check_file, missing_file
from verl_care.data.selection import (
    KeepRules,
    Runs,
    Selection,
    read_problem_types,
    read_runs,
    select,
    write_selection,
)
from verl_care.evaluation.asking import asking, progress_bar, write_text
from verl_care.evaluation.engines import EngineConfig
from verl_care.evaluation.interface import Completion, Request
from verl_care.evaluation.items import Item, build_item, question_of
from verl_care.evaluation.prompts import set_budget
from verl_care.evaluation.recorded import EvaluationError, OnProgress
from verl_care.rewards.scorer import GROUNDED_QA, compute_score

_ASKED_AT_ONCE = 2048
"""Records whose requests are in memory at a time."""


@dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """What a selection does."""

    data: tuple[str, ...]
    """Parquet files of records."""
    out_dir: str
    """The selection's folder."""
    rules: KeepRules = field(default_factory=KeepRules)
    """What is kept."""
    engine: EngineConfig | None = None
    """The model that is asked; None for the rollouts of ``run_dir``."""
    run_dir: str | None = None
    """Folder of a training run whose rollouts are read in place of asking a model."""
    first_step: int = 0
    """Rollouts of earlier steps are left out."""
    last_step: int | None = None
    """Rollouts of later steps are left out; None for none."""
    runs: int = 8
    """k: answers a record."""
    temperature: float = 1.0
    """Of every answer."""
    top_p: float = 1.0
    """Nucleus."""
    max_tokens: int = 1024
    """Longest answer."""
    scoring: str = "strict"
    """Which accuracy counts: one of the scorer's ``SCORINGS``."""
    max_frames: int | None = None
    """Frames of a video at most; None for what the records say."""
    fps: float | None = None
    """Frames a second before that cap; None for what the records say."""
    min_pixels: int | None = None
    """Of a frame; None for what the records say."""
    max_pixels: int | None = None
    """Of a frame; None for what the records say."""
    batch_size: int = 64
    """Answers written at a time, at least."""
    retry_failed: bool = False
    """Asks again what failed in an earlier try."""

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("data: expected at least one file")
        if (self.engine is None) == (self.run_dir is None):
            raise ValueError("expected a model to ask, or the folder of a training run; one of the two")
        if self.runs < 1:
            raise ValueError(f"runs: expected a whole number >= 1; got {self.runs}")
        if self.temperature <= 0:
            raise ValueError("temperature: greedy answers do not vary; set it above 0")

    def requests(self, item: Item) -> list[Request]:
        """The k answers to sample for a record, each with a random seed made of the record's name and its number."""
        question = replace(question_of(item), prompt=set_budget(item.messages, **self._budget))
        found = []
        for number in range(self.runs):
            name = f"{self.rules.seed}/{item.key}/{number}".encode("utf-8", "surrogatepass")
            sampling = {"temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_tokens}
            sampling["seed"] = zlib.crc32(name) & 0x7FFFFFFF
            found.append(Request(question=question, sample=number, sampling=sampling))
        return found

    @property
    def _budget(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("max_frames", "fps", "min_pixels", "max_pixels")}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A finished selection."""

    selection: Selection
    failed: int
    """Answers that failed; they are no runs."""
    summary: dict[str, Any]
    """What ``selection.json`` holds."""


def run_selection(config: SelectConfig, *, on_progress: OnProgress = lambda done, total, failed: None) -> Outcome:
    """Asks (or reads a run's log), decides and writes; what the folder already has is not asked again.

    Raises:
        DataError: a faulty data file or record, or nothing to keep.
        EvaluationError: the folder belongs to another model, or nothing can be asked.
        FileNotFoundError: the training run has no rollout log.
    """
    from verl_care.report.selection_page import write_page

    seen: dict[str, tuple[int, str]] = {}
    for path in config.data:
        if not Path(path).exists():
            raise missing_file(path)
        check_file(path, seen)
    out_dir = Path(config.out_dir)
    if config.run_dir is not None:
        runs, failed = _runs_of_log(config), 0
    else:
        runs, failed = _runs_of_model(config, len(seen), on_progress)
    selection = select(runs, config.rules)
    write_selection(config.data, selection, out_dir)
    summary = {
        "records": len(selection.scores),
        "kept": len(selection.kept),
        "counts": selection.counts,
        "variance_threshold": selection.variance_threshold,
        "failed_runs": failed,
        "settings": asdict(config),
    }
    write_text(out_dir / "selection.json", json.dumps(summary, indent=1))
    write_page(selection, out_dir / "selection.html", summary)
    return Outcome(selection=selection, failed=failed, summary=summary)


def _runs_of_log(config: SelectConfig) -> list[Runs]:
    import pyarrow.parquet as pq

    rows = [
        row for path in config.data for row in pq.read_table(path, columns=["data_source", "extra_info"]).to_pylist()
    ]
    return read_runs(
        config.run_dir or "", read_problem_types(rows), first_step=config.first_step, last_step=config.last_step
    )


def _runs_of_model(config: SelectConfig, num_records: int, on_progress: OnProgress) -> tuple[list[Runs], int]:
    runs: list[Runs] = []
    failed = 0
    with asking(config, on_progress=on_progress, expected=num_records * config.runs) as engine:
        for items in _chunks(config.data):
            requests = [request for item in items for request in config.requests(item)]
            generated = engine(requests)
            for place, item in enumerate(items):
                mine = generated[place * config.runs : (place + 1) * config.runs]
                texts = [outcome.text for outcome in mine if isinstance(outcome, Completion)]
                failed += len(mine) - len(texts)
                runs.append(score_runs(item, texts, config.scoring))
    return runs, failed


def _chunks(paths: Sequence[str]) -> Iterator[list[Item]]:
    """Items of checked files, some at a time; a record that is there again is left out."""
    import pyarrow.parquet as pq

    seen: set[str] = set()
    chunk: list[Item] = []
    for path in paths:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_ASKED_AT_ONCE):
                for row in batch.to_pylist():
                    item = build_item(row)
                    if item.key in seen:
                        continue
                    seen.add(item.key)
                    chunk.append(item)
                    if len(chunk) == _ASKED_AT_ONCE:
                        yield chunk
                        chunk = []
    if chunk:
        yield chunk


def score_runs(item: Item, texts: Sequence[str], scoring: str) -> Runs:
    """What the answers to a record score, by the reward that training would give them."""
    extra_info = {**item.info, "options": list(item.options)}
    results = [compute_score(item.benchmark, text, item.ground_truth, extra_info, scoring=scoring) for text in texts]
    parts = {
        name: tuple(float(result[name] or 0.0) for result in results if result[name] is not None)
        for name in ("acc", "acc_answer", "acc_iou")
    }
    grounded = item.problem_type == GROUNDED_QA
    return Runs(
        prompt_key=item.key,
        data_source=item.benchmark,
        problem_type=item.problem_type,
        acc=parts["acc"],
        acc_answer=parts["acc_answer"] if grounded else (),
        acc_iou=parts["acc_iou"] if grounded else (),
    )


def main(config: SelectConfig, *, as_json: bool = False) -> int:
    """What ``verl-care select`` does; gives the exit status: 0, 1 where the work failed, 130 after Ctrl-C."""
    from verl_care.evaluation.checkpoints import find_model

    def work() -> None:
        asked = config
        if config.engine is not None:
            asked = replace(config, engine=replace(config.engine, model=find_model(config.engine.model)))
        with progress_bar("asking") as on_progress:
            outcome = run_selection(asked, on_progress=on_progress)
        report(outcome, config.out_dir, as_json=as_json)

    return run_command(work, EvaluationError)


def report(outcome: Outcome, out_dir: str, *, as_json: bool) -> None:
    """Prints what was kept, and where it is."""
    summary = outcome.summary
    if as_json:
        print(json.dumps(summary))
        return
    print(
        f"kept {summary['kept']} of {summary['records']}: "
        + ", ".join(f"{k} {n}" for k, n in summary["counts"].items())
    )
    if outcome.failed:
        print(f"{outcome.failed} answers failed; answers.jsonl names each with its error", file=sys.stderr)
    print(f"wrote {out_dir}: subset.parquet, scores.parquet, selection.html")
