"""The error of everything here that writes or reads checkpoints."""

from __future__ import annotations


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or used; the message says which and what to do."""
