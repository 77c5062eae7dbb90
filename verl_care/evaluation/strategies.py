"""Sparse-to-dense over benchmarks, and what it is compared with: plain majorities at fixed frames, and greedy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from verl_care.evaluation.interface import Generate
from verl_care.evaluation.items import Benchmark, Item, question_of
from verl_care.evaluation.prompts import Messages, frame_shares, part_range, video_parts
from verl_care.evaluation.scores import Answered, verdict
from verl_care.evaluation.sparse_to_dense import Outcome, Result, SparseToDense
from verl_care.evaluation.statistics import Unit, paired_bootstrap

SPARSE_TO_DENSE = "sparse_to_dense"
_PROBES = 16


def count_frames(messages: Messages) -> int | None:
    """Frames that the shortest clip of a prompt has, in the part that is asked about; None if it cannot be read.

    A prompt without a clip has as many as the first level may show, so that it is asked once.
    """
    shares = frame_shares(messages)
    counts = [(_frames_of(part), shares.get(part_range(part), 1.0)) for part in video_parts(messages)]
    # Parts of a video share a level's frames: it has enough where each part does.
    known = [math.floor(count / share) for count, share in counts if count is not None]
    if len(known) < len(counts):
        # What is wrong with the clip shows when it is asked about.
        return None
    return min(known, default=0)


def _frames_of(part: Mapping[str, Any]) -> int | None:
    from verl_care.data.video import VideoError, probe

    if isinstance(part["video"], list | tuple):
        return len(part["video"])
    try:
        total, fps = probe(str(part["video"]).removeprefix("file://"))
    except VideoError:
        return None
    start, end = part.get("video_start"), part.get("video_end")
    first = 0 if start is None else math.ceil(start * fps)
    last = total - 1 if end is None else min(math.floor(end * fps), total - 1)
    return max(0, last - first + 1)


def count_all_frames(items: Sequence[Item]) -> dict[str, int | None]:
    """``count_frames`` of every item by its name, in threads."""
    with ThreadPoolExecutor(max_workers=_PROBES) as pool:
        counts = list(pool.map(lambda item: count_frames(item.messages), items))
    return {item.key: count for item, count in zip(items, counts, strict=True)}


def to_answer(item: Item, seed: int, result: Result) -> Answered:
    """What a strategy decided, as an answer to be scored."""
    error = None
    if result.failed:
        error = result.levels[-1].errors[0]
    text = None if result.failed else f"<answer>{result.answer}</answer>" if result.answer is not None else ""
    return Answered(
        item=item, seed=seed, text=text, error=error, num_tokens=result.num_tokens, num_frames=result.num_frames
    )


def run_strategies(
    strategy: SparseToDense,
    benchmarks: Sequence[Benchmark],
    engine: Generate,
    *,
    seeds: Sequence[int],
    compare: bool,
    resamples: int,
) -> tuple[dict[str, list[Answered]], dict[str, Any]]:
    """Asks all benchmarks at once, a level at a time; gives answers by benchmark, and figures by strategy.

    Args:
        strategy: levels, samples, threshold.
        benchmarks: what is asked.
        engine: who answers.
        seeds: one course each.
        compare: also asks what sparse-to-dense is compared with: the last level for every question (always dense),
            plain majorities that read as many frames at the first and at the last level, and greedy at both.
        resamples: draws of the bootstrap.

    Returns:
        Answers of sparse-to-dense; and by strategy its figures over all benchmarks, means over the seeds, with the
        difference of sparse-to-dense from it.
    """
    items = [item for benchmark in benchmarks for item in benchmark.items]
    frames = count_all_frames(items)
    questions = [question_of(item, available_frames=frames[item.key]) for item in items]
    answers: dict[str, list[Answered]] = {benchmark.name: [] for benchmark in benchmarks}
    courses: dict[str, list[Outcome]] = {}
    for seed in seeds:
        # Each seed of the run gives every request another seed.
        own = _changed(strategy, seed=strategy.seed + seed)
        course = own.run(questions, engine)
        courses.setdefault(SPARSE_TO_DENSE, []).append(course)
        for item, result in zip(items, course.results, strict=True):
            answers[item.benchmark].append(to_answer(item, seed, result))
        if compare:
            for name, other in comparisons(own, course).items():
                courses.setdefault(name, []).append(other.run(questions, engine))
    clusters = {item.key: item.video for item in items}
    own_units = _units(courses[SPARSE_TO_DENSE], clusters)
    figures = {}
    for name, outcomes in courses.items():
        figures[name] = _mean_figures([outcome.report.to_dict() for outcome in outcomes])
        if name != SPARSE_TO_DENSE:
            difference = paired_bootstrap(own_units, _units(outcomes, clusters), resamples=resamples)
            figures[name]["difference"] = {
                **{key: None if math.isnan(value) else value for key, value in difference.to_dict().items()},
                "verdict": verdict(difference),
            }
    return answers, figures


def comparisons(strategy: SparseToDense, course: Outcome) -> dict[str, SparseToDense]:
    """What a finished course of sparse-to-dense is compared with, by name."""
    first, last = strategy.frames[0], strategy.frames[-1]
    found = {f"always dense: {strategy.samples} at {last}": _changed(strategy, frames=(last,))}
    for frames in dict.fromkeys((first, last)):
        other = strategy.at_equal_compute(course.report, frames)
        found[f"equal compute: {other.samples} at {frames}"] = other
    for frames in dict.fromkeys((first, last)):
        found[f"greedy at {frames}"] = SparseToDense.greedy(
            frames, max_tokens=strategy.max_tokens, tagged=strategy.tagged, frame_factor=strategy.frame_factor
        )
    return found


def _changed(strategy: SparseToDense, **changes: Any) -> SparseToDense:
    options = {name: getattr(strategy, name) for name in strategy.__dataclass_fields__}
    return SparseToDense(**{**options, **changes})


def _units(outcomes: Sequence[Outcome], clusters: Mapping[str, str]) -> list[Unit]:
    values: dict[str, list[float]] = {}
    for outcome in outcomes:
        for result in outcome.results:
            values.setdefault(result.question.key, []).append(result.acc_strict or 0.0)
    return [Unit(name=key, value=math.fsum(found) / len(found), cluster=clusters[key]) for key, found in values.items()]


def _mean_figures(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name in reports[0]:
        values = [report[name] for report in reports]
        if isinstance(values[0], dict):
            figures[name] = {key: math.fsum(value[key] for value in values) / len(values) for key in values[0]}
        elif any(value is None for value in values):
            figures[name] = None
        elif name.startswith("num_"):
            # Counts of failures add up over the seeds; that of the questions is the same for each.
            figures[name] = values[0] if name == "num_questions" else sum(values)
        else:
            figures[name] = math.fsum(values) / len(values)
    return figures
