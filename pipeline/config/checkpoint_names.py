"""The names of a run's checkpoints, for those that only list them: no torch."""

from __future__ import annotations

from pathlib import Path


def name_of(step: int) -> str:
    return f"step_{step:08d}"


def steps_in(folder: Path) -> list[int]:
    """Steps that have a checkpoint, newest first, whole or damaged."""
    names = (path.name.removeprefix("step_") for path in folder.glob("step_*"))
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)
