"""Evaluation: answers of a model, voted and scored. Pure; the engine is a callable of the caller's."""

from verl_care.evaluation.sparse_to_dense import Completion, Outcome, Question, Report, Request, SparseToDense

__all__ = ["Completion", "Outcome", "Question", "Report", "Request", "SparseToDense"]
