"""Scores of a pair of towers: zero-shot classification and image-text retrieval.

In: two encoders, a tokenizer and evaluation sets, each rank with its share of the images. Out: one
dictionary per set, equal on every rank, and files for the reader: eval/*.json and report.html.
"""

from pipeline.eval.files import forget_after, scored_sets, write_results
from pipeline.eval.protocols import EvalError
from pipeline.eval.report import write_report
from pipeline.eval.results import format_table
from pipeline.eval.runner import evaluate_model

__all__ = [
    "EvalError",
    "evaluate_model",
    "forget_after",
    "format_table",
    "scored_sets",
    "write_report",
    "write_results",
]
