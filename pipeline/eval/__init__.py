"""Scores of a pair of towers: zero-shot classification and image-text retrieval.

In: two encoders, a tokenizer and evaluation sets, each rank with its share of the images. Out: one
dictionary per set, equal on every rank, and files for the reader: eval/*.json and report.html.
"""

from pipeline.eval.files import scored_sets, set_aside_after, write_results
from pipeline.eval.protocols import EvalError
from pipeline.eval.report import write_report
from pipeline.eval.results import format_table
from pipeline.eval.runner import evaluate_model

__all__ = [
    "EvalError",
    "evaluate_model",
    "format_table",
    "scored_sets",
    "set_aside_after",
    "write_report",
    "write_results",
]
