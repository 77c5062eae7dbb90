"""Evaluation: answers of a model, voted and scored. The engine is a callable; see ``evaluation.interface``."""

from verl_care.evaluation.interface import Completion, Question, Request
from verl_care.evaluation.sparse_to_dense import Outcome, Report, SparseToDense

__all__ = ["Completion", "Outcome", "Question", "Report", "Request", "SparseToDense"]
