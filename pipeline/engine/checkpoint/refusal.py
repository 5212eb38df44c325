"""The error for a checkpoint that all ranks must refuse."""

from __future__ import annotations

from pipeline.distributed.group import Group, PeerError
from pipeline.engine.checkpoint.errors import CheckpointError


def refusal(ranks: Group, text: str) -> RuntimeError:
    """The error to raise when all ranks know what is wrong. Only rank 0 prints it, so that it
    stands once in a log of hundreds of ranks."""
    return CheckpointError(text) if ranks.is_main else PeerError(f"rank 0: {text}")
