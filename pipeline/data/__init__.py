"""Shards -> batches: a data set's manifest in, uint8 images and token ids of this rank's share of
each global batch out.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.data.batches.batch import Batch
    from pipeline.data.batches.prefetch import Loader
    from pipeline.data.evaluation.eval_set import EvalSet, load_eval_set
    from pipeline.data.evaluation.eval_shards import EvalSetError
    from pipeline.data.faults import LoaderError
    from pipeline.data.loader import TrainLoader, build_train_loader
    from pipeline.data.samples.tokenizer import Tokenizer

__all__ = [
    "Batch",
    "EvalSet",
    "EvalSetError",
    "Loader",
    "LoaderError",
    "Tokenizer",
    "TrainLoader",
    "build_train_loader",
    "load_eval_set",
]

_MODULES = {
    "Batch": "batches.batch",
    "EvalSet": "evaluation.eval_set",
    "EvalSetError": "evaluation.eval_shards",
    "Loader": "batches.prefetch",
    "LoaderError": "faults",
    "Tokenizer": "samples.tokenizer",
    "TrainLoader": "loader",
    "build_train_loader": "loader",
    "load_eval_set": "evaluation.eval_set",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used. Worker processes import this package too, and
    must not import torch with it (five seconds, 200 MB).
    """
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
