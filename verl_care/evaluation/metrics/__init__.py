"""Official scores: one module a family of benchmarks, and the table of all. Pure."""

from verl_care.evaluation.metrics.base import Figures, Metric, Scored, Values
from verl_care.evaluation.metrics.table import METRICS, metric_of

__all__ = ["METRICS", "Figures", "Metric", "Scored", "Values", "metric_of"]
