"""The metric of each benchmark, by the name of its data source. Pure."""

from __future__ import annotations

from verl_care.evaluation.items import Item
from verl_care.evaluation.metrics import cg_bench, grounding, next_gqa, open_answers, tempcompass, video_mmmu, vsi_bench
from verl_care.evaluation.metrics.base import Metric, info_text


def _task_type(item: Item) -> tuple[str, ...]:
    return (info_text(item, "task_type"),)


def _question_of_pairs(item: Item) -> str | None:
    return info_text(item, "question_id") if item.info.get("config") == "multi_binary" else None


_VIDEO_MME = Metric(label="accuracy", group_by=("duration_class", "domain", "sub_category", "task_type"))
_GROUNDING = Metric(label="mIoU", score=grounding.score, figures=grounding.figures)

METRICS: dict[str, Metric] = {
    "vsi_bench": Metric(
        label="mean of 8 tasks",
        score=vsi_bench.score,
        macro=vsi_bench.task_of,
        group_by=("question_type",),
        figures=vsi_bench.figures,
    ),
    "video_mmmu": Metric(
        label="accuracy",
        score=open_answers.score,
        group_by=("track", "subject", "question_type"),
        figures_with=video_mmmu.figures_with,
    ),
    video_mmmu.QUESTION_ONLY: Metric(label="accuracy", score=open_answers.score, group_by=("subject",)),
    "mmvu": Metric(label="accuracy", score=open_answers.score, group_by=("question_type", "subject")),
    "mvbench": Metric(label="mean of tasks", macro=_task_type, group_by=("task_type",)),
    "tempcompass": Metric(label="accuracy", score=tempcompass.score, group_by=("format", "aspect", "fine_aspect")),
    "video_mme": _VIDEO_MME,
    "video_mme_subtitles": _VIDEO_MME,
    "video_holmes": Metric(label="accuracy", group_by=("question_type",)),
    "longvideobench": Metric(label="accuracy", group_by=("duration_group", "question_category")),
    "lvbench": Metric(label="accuracy", group_by=("question_type",)),
    "videomathqa": Metric(
        label="accuracy; of pairs, all right",
        together=_question_of_pairs,
        group_by=("config", "category", "duration_class"),
    ),
    "nextgqa": Metric(label="Acc@GQA", score=next_gqa.score, group_by=("type",), figures=next_gqa.figures),
    "charades_sta": _GROUNDING,
    "activitynet_tvg": _GROUNDING,
    "cgbench": Metric(
        label="accuracy (long)",
        score=cg_bench.score_choice,
        group_by=("domain",),
        figures_with=cg_bench.figures_with,
    ),
    cg_bench.CLUE: Metric(label="accuracy (clues)", score=cg_bench.score_choice, group_by=("domain",)),
    cg_bench.MIOU: Metric(label="mIoU", score=cg_bench.score_clues, figures=cg_bench.clue_figures),
}
"""Benchmarks by the names that ``data.prepare`` gives them."""

GENERIC = Metric(label="accuracy", group_by=("problem_type",))
"""For a data source that is none of them: the mean accuracy by problem type."""


def metric_of(benchmark: str) -> Metric:
    """The benchmark's own metric, or the generic one."""
    return METRICS.get(benchmark, GENERIC)
