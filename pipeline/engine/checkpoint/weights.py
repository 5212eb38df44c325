"""Loads the weights of a checkpoint without the engine that wrote it."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from pipeline.engine.checkpoint.errors import CheckpointError
from pipeline.engine.checkpoint.folder import CheckpointFolder, name_of
from pipeline.engine.checkpoint.reader import EMA, WEIGHT, read_whole
from pipeline.engine.checkpoint.tensors import problem_of


def newest_step(run_dir: Path) -> int:
    """Step of the newest checkpoint whose files have the right sizes; CheckpointError when there is
    none."""
    folder = CheckpointFolder(run_dir / "checkpoints")
    for step in folder.steps():
        try:
            files = folder.record(step).files
            if all((folder[step] / file.name).stat().st_size == file.num_bytes for file in files):
                return step
        except (OSError, CheckpointError):
            continue
    raise CheckpointError(
        f"{run_dir}: no checkpoint yet; train first (python -m pipeline.train run_dir={run_dir})"
    )


def load_model_weights(
    run_dir: Path, step: int | None = None, ema: bool | None = None
) -> dict[str, Tensor]:
    """Weights by parameter name, float32, on the CPU, of the newest checkpoint or that of `step`.

    ema: True gives the average of the weights, False the weights themselves, None the average if
    the checkpoint has one. Raises CheckpointError when the checkpoint is missing or damaged, or
    when the average is asked for and missing.
    """
    folder = CheckpointFolder(run_dir / "checkpoints")
    if step is None:
        step = newest_step(run_dir)
    elif step not in folder.steps():
        present = ", ".join(name_of(other) for other in sorted(folder.steps())) or "none"
        raise CheckpointError(f"{run_dir}: no checkpoint of step {step}; there is: {present}")
    path = folder[step]
    try:
        record = folder.record(step)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}; take another step") from error
    checked = [problem_of(path, file) for file in record.files]
    problems = [problem for problem in checked if problem is not None]
    if problems:
        raise CheckpointError(f"{path} is damaged: {'; '.join(problems)}; take another step")
    averaged = any(EMA in parameter.kinds for parameter in record.parameters.values())
    if ema and not averaged:
        raise CheckpointError(f"{path} has no average of the weights: train.ema_decay was off")
    return read_whole(path, record, EMA if averaged and ema is not False else WEIGHT)
