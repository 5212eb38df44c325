"""Loads the weights of a checkpoint without the engine that wrote it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from pipeline.config.run_files import name_of
from pipeline.engine.checkpoint.errors import CheckpointError
from pipeline.engine.checkpoint.folder import CheckpointFolder
from pipeline.engine.checkpoint.reader import EMA, WEIGHT, read_whole
from pipeline.engine.checkpoint.tensors import problem_of

_TRIES = 5
"""Times that another checkpoint is taken for one that a training deleted while it was read."""


@dataclass(frozen=True)
class Weights:
    """The weights of one checkpoint, or their average."""

    step: int
    is_average: bool
    has_average: bool
    """Whether the checkpoint has an average, taken or not."""
    shapes: dict[str, tuple[int, ...]]
    values: dict[str, Tensor]
    """By parameter name, float32, on the CPU."""

    def without_values(self) -> Weights:
        return replace(self, values={})


def newest_step(run_dir: Path) -> int:
    """Step of the newest checkpoint whose files have the right sizes; CheckpointError when there is
    none."""
    folder = CheckpointFolder(run_dir / "checkpoints")
    steps = folder.steps()
    for step in steps:
        try:
            files = folder.record(step).files
            if all((folder[step] / file.name).stat().st_size == file.num_bytes for file in files):
                return step
        except (OSError, CheckpointError):
            continue
    if steps:
        raise CheckpointError(
            f"{folder.path}: no checkpoint is whole, of the steps {', '.join(map(str, steps))}: "
            f"restore one from a copy"
        )
    raise CheckpointError(
        f"{run_dir}: no checkpoint yet; train first (python -m pipeline.train run_dir={run_dir})"
    )


def load_model_weights(
    run_dir: Path, step: int | None = None, ema: bool | None = None
) -> dict[str, Tensor]:
    """The values of `read_weights`."""
    return read_weights(run_dir, step, ema).values


def read_weights(run_dir: Path, step: int | None = None, ema: bool | None = None) -> Weights:
    """Weights of the newest checkpoint or that of `step`.

    ema: True gives the average of the weights, False the weights themselves, None the average if
    the checkpoint has one. A training that goes on may delete a checkpoint while it is read: then
    the newest is chosen again. Raises CheckpointError when the checkpoint is missing or damaged,
    when it was deleted while it was read, or when the average is asked for and missing.
    """
    folder = CheckpointFolder(run_dir / "checkpoints")
    for _ in range(_TRIES):
        chosen = newest_step(run_dir) if step is None else step
        if chosen not in folder.steps():
            raise CheckpointError(f"{run_dir}: no checkpoint of step {chosen}{_there_is(folder)}")
        try:
            return _read(folder, chosen, ema)
        except (OSError, CheckpointError, SafetensorError) as error:
            if folder[chosen].exists():
                if isinstance(error, CheckpointError):
                    raise
                raise CheckpointError(f"{folder[chosen]} cannot be read: {error}") from error
    raise CheckpointError(
        f"{folder.path}: {name_of(chosen)} was deleted while it was read, by a training that goes "
        f"on and keeps checkpoint.kept checkpoints{_there_is(folder)}"
    )


def _there_is(folder: CheckpointFolder) -> str:
    return "; there is: " + (", ".join(map(name_of, sorted(folder.steps()))) or "none")


def _read(folder: CheckpointFolder, step: int, ema: bool | None) -> Weights:
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
        raise CheckpointError(
            f"{path} has no average of the weights (train.ema_decay was off): leave out ema=true"
        )
    is_average = averaged and ema is not False
    return Weights(
        step=step,
        is_average=is_average,
        has_average=averaged,
        shapes={name: parameter.shape for name, parameter in record.parameters.items()},
        values=read_whole(path, record, EMA if is_average else WEIGHT),
    )
