"""How a checkpoint that is wrong for all ranks is refused."""

from __future__ import annotations

from pipeline.distributed.group import Group, PeerError
from pipeline.engine.checkpoint.errors import CheckpointError


def refusal(ranks: Group, text: str) -> RuntimeError:
    """The error to raise where all ranks know what is wrong: rank 0 says it, once in a log of
    hundreds of ranks."""
    return CheckpointError(text) if ranks.is_main else PeerError(f"rank 0: {text}")
