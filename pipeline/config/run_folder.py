"""What a folder that is named as a run holds, seen without torch: a run, something else, or
nothing."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.config.checkpoint_names import name_of, steps_in

EXPORT_FILES = ("model_config.json", "open_clip_config.json", "config.json")
"""Each is in one of the formats of pipeline.export."""


def no_run_in(run_dir: Path, given: bool = True) -> str | None:
    """Why nothing in `run_dir` can be evaluated, and what to do; None for a run with checkpoints.
    given: False where no run_dir was named."""
    if not given:
        return "run_dir is not given: add run_dir=runs/NAME"
    train_first = (
        f"no checkpoint yet; train first (python -m pipeline.train run_dir={run_dir}), or wait for "
        f"the first of a training that runs"
    )
    if not run_dir.exists():
        return f"run_dir = {run_dir}: there is no such folder, and {train_first}"
    if not run_dir.is_dir():
        return f"run_dir = {run_dir}: is a file; name the folder of a run"
    steps = steps_in(run_dir / "checkpoints")
    if (run_dir / "config.yaml").exists():
        return None if steps else f"run_dir = {run_dir}: {train_first}"
    if steps:
        return (
            f"run_dir = {run_dir}: config.yaml is missing, which says what model the checkpoints "
            f"are of; restore it from a copy"
        )
    if any((run_dir / name).exists() for name in EXPORT_FILES):
        return (
            f"run_dir = {run_dir}: is an exported model, not a run; name the folder of the run "
            f"that it was exported from"
        )
    if run_dir.resolve().parent.name == "checkpoints" or run_dir.name == "checkpoints":
        above = next(path for path in run_dir.resolve().parents if path.name != "checkpoints")
        return f"run_dir = {run_dir}: is inside a run; name the run's own folder, {above}"
    return (
        f"run_dir = {run_dir}: holds no run (config.yaml and checkpoints/ are missing); name the "
        f"folder of a run"
    )


def no_such_step(run_dir: Path, step: int | None) -> str | None:
    """A problem where a checkpoint is asked for that the run does not have."""
    steps = sorted(steps_in(run_dir / "checkpoints"))
    if step is None or step in steps:
        return None
    there = ", ".join(map(str, steps[-20:])) or "none"
    return f"step = {step}: {run_dir} has no checkpoint of this step; there is: {there}"


def no_average_in(run_dir: Path, step: int | None, ema: bool | None) -> str | None:
    """A problem where the average is asked for of a checkpoint (`step`, or the newest) that has
    none. One that cannot be read is left to those that read checkpoints."""
    steps = steps_in(run_dir / "checkpoints")
    if not ema or not steps or step not in (None, *steps):
        return None
    path = run_dir / "checkpoints" / name_of(steps[0] if step is None else step)
    try:
        parameters = json.loads((path / "state.json").read_text())["parameters"]
        if any("ema" in kinds for _, _, kinds in parameters):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (
        f"ema = true: {path} has no average of the weights (train.ema_decay was off); leave it out"
    )
