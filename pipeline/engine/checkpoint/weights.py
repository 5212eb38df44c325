"""The weights of a checkpoint without the engine that wrote it."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from pipeline.engine.checkpoint.errors import CheckpointError
from pipeline.engine.checkpoint.folder import CheckpointFolder, name_of
from pipeline.engine.checkpoint.reader import EMA, WEIGHT, read_whole
from pipeline.engine.checkpoint.tensors import problem_of


def newest_step(run_dir: Path) -> int:
    """Step of the newest checkpoint whose files have their recorded sizes. Raises CheckpointError
    when there is none."""
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
    """Weights of the newest checkpoint or that of `step`: float32 by parameter name, on the CPU.

    ema: the average of the weights (True), the weights themselves (False), or the average where the
    checkpoint has one (None). Raises CheckpointError when the checkpoint is not there, is damaged,
    or has no average.
    """
    folder = CheckpointFolder(run_dir / "checkpoints")
    if step is None:
        step = newest_step(run_dir)
    elif step not in folder.steps():
        there = ", ".join(name_of(other) for other in sorted(folder.steps())) or "none"
        raise CheckpointError(f"{run_dir}: no checkpoint of step {step}; there is: {there}")
    path = folder[step]
    try:
        record = folder.record(step)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}; take another step") from error
    problems = [told for file in record.files if (told := problem_of(path, file))]
    if problems:
        raise CheckpointError(f"{path} is damaged: {'; '.join(problems)}; take another step")
    averaged = any(EMA in parameter.kinds for parameter in record.parameters.values())
    if ema and not averaged:
        raise CheckpointError(f"{path} has no average of the weights: train.ema_decay was off")
    return read_whole(path, record, EMA if averaged and ema is not False else WEIGHT)
