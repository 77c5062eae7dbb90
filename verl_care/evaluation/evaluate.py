"""``verl-care eval``: a checkpoint on benchmarks, from prepared files to official scores.

A run lives in a folder: ``run.json`` (what is asked of which model), ``answers.jsonl`` (every answer, as it comes; a
killed run goes on from there), ``items.parquet`` (every item with its scores), ``results.json``, ``results.md`` and
``results.html``.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from verl_care.commands import run_command
from verl_care.data.records import replace_file
from verl_care.evaluation.asking import RUN, VERSION, asking, progress_bar, read_json, write_text
from verl_care.evaluation.engines import EngineConfig
from verl_care.evaluation.interface import TRUNCATED, Completion, Generated, Request, error_message
from verl_care.evaluation.items import Benchmark, Item, question_of, read_benchmarks
from verl_care.evaluation.prompts import set_budget
from verl_care.evaluation.recorded import EvaluationError, OnProgress, RecordedEngine
from verl_care.evaluation.scores import Answered, BenchmarkScores, Row, compare, score_benchmark, summarise, to_rows
from verl_care.evaluation.sparse_to_dense import SparseToDense
from verl_care.evaluation.strategies import SPARSE_TO_DENSE, run_strategies

ITEMS, RESULTS = "items.parquet", "results.json"


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What is asked, and how."""

    engine: EngineConfig
    data: tuple[str, ...]
    """Prepared Parquet files, or folders with ``test.parquet``."""
    out_dir: str
    """The run's folder."""
    seeds: tuple[int, ...] = (0,)
    """One answer an item for each; with several the temperature must be above 0."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """Nucleus."""
    top_k: int = -1
    """Most likely tokens to sample from; -1 for all."""
    max_tokens: int = 1024
    """Longest answer."""
    max_frames: int | None = None
    """Frames of a video at most; None for what the records say."""
    fps: float | None = None
    """Frames a second before that cap; None for what the records say."""
    min_pixels: int | None = None
    """Of a frame; None for what the records say."""
    max_pixels: int | None = None
    """Of a frame; None for what the records say."""
    option_seed: int | None = None
    """Order of the options of multiple-choice questions; None leaves them."""
    blind: bool = False
    """Also asks every question without its clip."""
    limit: int | None = None
    """First so many items of each benchmark."""
    baseline: str | None = None
    """Folder of the run to compare with."""
    batch_size: int = 64
    """Answers written at a time, at least."""
    retry_failed: bool = False
    """Asks again what failed in an earlier try."""
    strategy: SparseToDense | None = None
    """Asks by levels of frames, and takes frames, answers and temperatures from here; None asks once."""
    compare_strategies: bool = True
    """With a strategy: also asks what it is compared with."""
    resamples: int = 2000
    """Draws of the bootstraps."""

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("data: expected at least one file")
        if len(set(self.seeds)) < len(self.seeds) or not self.seeds:
            raise ValueError(f"seeds: expected different numbers; got {self.seeds}")
        if self.strategy is not None and self.blind:
            raise ValueError("blind: a question without its clip has no frames to ask at; leave one of the two out")
        if len(self.seeds) > 1 and self.temperature == 0 and self.strategy is None:
            raise ValueError("seeds: greedy answers are the same under every seed; set a temperature above 0")

    @property
    def budget(self) -> dict[str, Any]:
        """What an answer may cost, beside the prompt itself."""
        if self.strategy is None:
            return {"strategy": "single", "max_tokens": self.max_tokens}
        # As JSON has it, so that a run read from its file compares.
        return {**json.loads(json.dumps(asdict(self.strategy))), "strategy": SPARSE_TO_DENSE}

    def sampling(self, item: Item, seed: int) -> dict[str, Any]:
        """Sampling parameters of one answer; its random seed is made of the run's and the item's name."""
        cold = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        if self.temperature == 0:
            return cold
        drawn = zlib.crc32(f"{seed}/{item.key}".encode("utf-8", "surrogatepass")) & 0x7FFFFFFF
        return {**cold, "top_p": self.top_p, "top_k": self.top_k, "seed": drawn}


def load_benchmarks(config: EvalConfig) -> list[Benchmark]:
    """The benchmarks of a run, under its budget of frames and pixels."""
    budget = {name: getattr(config, name) for name in ("max_frames", "fps", "min_pixels", "max_pixels")}
    return [
        replace(
            benchmark,
            items=tuple(replace(item, messages=set_budget(item.messages, **budget)) for item in benchmark.items),
        )
        for benchmark in read_benchmarks(config.data, limit=config.limit, option_seed=config.option_seed)
    ]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A finished run."""

    scores: tuple[BenchmarkScores, ...]
    blind: tuple[BenchmarkScores, ...]
    """The same benchmarks asked without clips; empty if they were not."""
    results: dict[str, Any] = field(default_factory=dict)
    """What ``results.json`` holds."""


def evaluate(config: EvalConfig, *, on_progress: OnProgress = lambda done, total, failed: None) -> Evaluation:
    """Asks, scores and writes a run; what its folder already has is not asked again.

    Raises:
        DataError: a faulty data file or record; names it.
        EvaluationError: the folder belongs to another run, the baseline cannot be read, or nothing can be asked.
    """
    benchmarks = load_benchmarks(config)
    baseline = None if config.baseline is None else read_run(config.baseline)
    out_dir = Path(config.out_dir)
    with asking(config, on_progress=on_progress) as engine:
        strategies: dict[str, Any] | None = None
        if config.strategy is None:
            scores, blind = ask(config, benchmarks, engine)
        else:
            answers, strategies = run_strategies(
                config.strategy,
                benchmarks,
                engine,
                seeds=config.seeds,
                compare=config.compare_strategies,
                resamples=config.resamples,
            )
            scores, blind = [score_benchmark(entry, answers[entry.name]) for entry in benchmarks], []
    results = build_results(config, scores, blind, baseline, read_json(out_dir / RUN).get("engine") or {})
    if strategies is not None:
        results["strategies"] = strategies
    write_run(out_dir, scores, blind, results)
    return Evaluation(scores=tuple(scores), blind=tuple(blind), results=results)


def ask(
    config: EvalConfig, benchmarks: Sequence[Benchmark], engine: RecordedEngine
) -> tuple[list[BenchmarkScores], list[BenchmarkScores]]:
    """Asks all items under all seeds at once, blind ones too; gives the scores of both."""
    kinds = (False, True) if config.blind else (False,)
    asked: list[tuple[Benchmark, Item, int, bool, Request]] = []
    for blind in kinds:
        for benchmark in benchmarks:
            for item in benchmark.items:
                question = question_of(item, blind=blind)
                asked += [
                    (benchmark, item, seed, blind, Request(question=question, sampling=config.sampling(item, seed)))
                    for seed in config.seeds
                ]
    generated = engine([request for *_, request in asked])
    answers: dict[tuple[str, bool], list[Answered]] = {}
    for (benchmark, item, seed, blind, _), outcome in zip(asked, generated, strict=True):
        answers.setdefault((benchmark.name, blind), []).append(answered(item, seed, outcome))
    found = [
        [score_benchmark(benchmark, answers[benchmark.name, blind]) for benchmark in benchmarks] for blind in kinds
    ]
    return found[0], found[1] if config.blind else []


def answered(item: Item, seed: int, outcome: Generated) -> Answered:
    """An engine's outcome for one item."""
    completion = Completion(outcome) if isinstance(outcome, str) else outcome
    if not isinstance(completion, Completion):
        return Answered(item=item, seed=seed, text=None, error=error_message(completion))
    truncated = None if completion.finish_reason is None else completion.finish_reason == TRUNCATED
    return Answered(item=item, seed=seed, text=completion.text, num_tokens=completion.num_tokens, truncated=truncated)


def build_results(
    config: EvalConfig,
    scores: Sequence[BenchmarkScores],
    blind: Sequence[BenchmarkScores],
    baseline: Mapping[str, Any] | None,
    engine: Mapping[str, Any],
) -> dict[str, Any]:
    """What ``results.json`` holds."""
    blind_by_name = {entry.benchmark.name: entry for entry in blind}
    benchmarks = {}
    for entry in scores:
        name = entry.benchmark.name
        summary = summarise(entry, [other for other in scores if other is not entry], resamples=config.resamples)
        if name in blind_by_name:
            summary["blind"] = summarise(blind_by_name[name], resamples=config.resamples)["headline"]
        if baseline is not None:
            rows = [row for row in baseline["rows"] if row["benchmark"] == name and not row["blind"]]
            same = baseline["results"].get("budget") == config.budget
            if rows:
                summary["baseline"] = compare(entry, rows, same_budget=same, resamples=config.resamples)
        benchmarks[name] = summary
    means = [summary["headline"]["strict"]["mean"] for summary in benchmarks.values()]
    return {
        "version": VERSION,
        "model": config.engine.model,
        "engine": dict(engine),
        "budget": config.budget,
        "sampling": {name: getattr(config, name) for name in ("temperature", "top_p", "top_k")},
        "frames": {name: getattr(config, name) for name in ("max_frames", "fps", "min_pixels", "max_pixels")},
        "seeds": list(config.seeds),
        "option_seed": config.option_seed,
        "limit": config.limit,
        "baseline": config.baseline,
        "mean_strict": sum(means) / len(means),
        "failed": sum(summary["failed"] for summary in benchmarks.values()),
        "benchmarks": benchmarks,
    }


# The run's folder


def write_run(
    out_dir: Path, scores: Sequence[BenchmarkScores], blind: Sequence[BenchmarkScores], results: Mapping[str, Any]
) -> None:
    """Writes the table of items, the results and both pages, each file whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from verl_care.evaluation.page import to_html, to_markdown
    from verl_care.rewards.parsing import is_utf8

    rows = [row for entry in scores for row in to_rows(entry)]
    rows += [row for entry in blind for row in to_rows(entry, blind=True)]
    columns: dict[str, list[Any]] = {column.name: [getattr(row, column.name) for row in rows] for column in fields(Row)}
    # Parquet holds UTF-8: a lone surrogate of a response becomes a question mark here; answers.jsonl has it.
    columns["text"] = [
        text if text is None or is_utf8(text) else text.encode("utf-8", "replace").decode() for text in columns["text"]
    ]
    types = {"text": pa.string(), "error": pa.string(), "official": pa.float64(), "tokens": pa.float64()}
    types |= {"frames": pa.float64(), "truncated": pa.bool_()}
    table = pa.table({name: pa.array(values, type=types.get(name)) for name, values in columns.items()})
    with replace_file(out_dir / ITEMS) as unfinished:
        pq.write_table(table, unfinished)
    write_text(out_dir / RESULTS, json.dumps(results, indent=1))
    write_text(out_dir / "results.md", to_markdown(results))
    write_text(out_dir / "results.html", to_html(results))


def read_run(folder: str | Path) -> dict[str, Any]:
    """A finished run: ``results``, and ``rows``, its table of items.

    Raises:
        EvaluationError: there is none.
    """
    import pyarrow.parquet as pq

    folder = Path(folder)
    try:
        results = read_json(folder / RESULTS)
        rows = pq.read_table(folder / ITEMS).to_pylist()
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{folder}: not a finished run of verl-care eval: {error}") from None
    if results.get("version") != VERSION:
        raise EvaluationError(f"{folder}: of another version ({results.get('version')}); evaluate it again")
    return {"results": results, "rows": rows}


# The command


def main(config: EvalConfig, *, as_json: bool = False) -> int:
    """What ``verl-care eval`` does; gives the exit status: 0, 1 where the work failed, 130 after Ctrl-C."""
    from verl_care.evaluation.checkpoints import find_model

    def work() -> None:
        asked = replace(config, engine=replace(config.engine, model=find_model(config.engine.model)))
        with progress_bar("asking") as on_progress:
            evaluation = evaluate(asked, on_progress=on_progress)
        report(evaluation.results, Path(config.out_dir), as_json=as_json)

    return run_command(work, EvaluationError)


def report(results: Mapping[str, Any], out_dir: Path, *, as_json: bool) -> None:
    """Prints the results, and where they are."""
    from verl_care.evaluation.page import summary_lines

    if as_json:
        print(json.dumps(results))
        return
    for line in summary_lines(results):
        print(line)
    print(f"wrote {out_dir / 'results.html'}, results.md, results.json")
