"""Shards -> batches: a data set's manifest in, uint8 images and token ids of this rank's share of
each global batch out.
"""

from pipeline.data.ahead import Loader
from pipeline.data.batch import Batch
from pipeline.data.eval_set import EvalSet, load_eval_set
from pipeline.data.eval_shards import EvalSetError
from pipeline.data.faults import LoaderError
from pipeline.data.loader import TrainLoader, build_train_loader
from pipeline.data.tokenizer import Tokenizer

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
