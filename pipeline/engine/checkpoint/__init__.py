"""Checkpoints that are whole or absent, written beside the training, and readable by any number of
ranks and any ZeRO stage."""

from pipeline.engine.checkpoint.errors import CheckpointError
from pipeline.engine.checkpoint.manager import CheckpointManager
from pipeline.engine.checkpoint.weights import (
    Weights,
    load_model_weights,
    newest_step,
    read_weights,
)

__all__ = [
    "CheckpointError",
    "CheckpointManager",
    "Weights",
    "load_model_weights",
    "newest_step",
    "read_weights",
]
