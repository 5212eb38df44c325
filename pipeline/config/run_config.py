"""The configuration of a run: what its folder holds, whether a job may go on there, and when the
file changes."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from data_tools.ground.aside import remove_leftovers, sync_folder, write_text_aside
from data_tools.ground.lock import HeldError, LockError, take
from pipeline.config.changes import refuse_another
from pipeline.config.frozen import load_frozen, to_yaml
from pipeline.config.run_files import (
    CHECKPOINTS,
    CONFIG,
    EVALUATIONS,
    LAST_CHECKPOINT,
    LOCK,
    METRICS,
    NO_CHECKPOINT_YET,
    SUBMITTED,
    checkpoint_step,
    missing_config,
    newest_ever,
    steps_of,
)
from pipeline.config.schema import ConfigError, TrainJob


def lock_run(run_dir: Path | str) -> IO[str] | None:
    """Take the run's lock, for as long as the returned file is open in any process; None where the
    launcher of this rank has it. ConfigError names who holds it, or says what is wrong with the
    folder."""
    folder = Path(run_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return take(folder / LOCK)
    except HeldError as error:
        if error.by_parent():
            return None
        raise ConfigError(
            f"run_dir = {run_dir}: this run is being trained already ({error}); wait for its end, "
            "stop it, or give another run_dir"
        ) from None
    except LockError as error:
        raise ConfigError(
            f"run_dir = {run_dir}: {error} (its checkpoints/ may be a link to a folder here)"
        ) from error
    except OSError as error:
        raise _cannot_write(run_dir, error) from error


def _cannot_write(run_dir: Path | str, error: OSError) -> ConfigError:
    return ConfigError(f"run_dir = {run_dir}: cannot be written ({error}); name a folder that can")


def refuse_misfit(job: TrainJob) -> None:
    """ConfigError where run_dir holds a run that `job` does not go on with, or what is left of one.
    Writes nothing."""
    left = Remains.of(job)
    if left.step is not None:
        left.refuse_another_configuration(job)
    elif job.checkpoint.remote is None:  # else they may be there: load_latest looks
        left.refuse_lost_checkpoints()
    if job.force and left.step is None and not (left.run_dir / CONFIG).exists():
        raise ConfigError(f"force = {job.force}: run_dir = {job.run_dir} holds no run to differ in")


@dataclass(frozen=True)
class Remains:
    """What an earlier start left in the run's folder, before a new one changes it."""

    run_dir: Path
    step: int | None
    """That of the newest checkpoint, whole or not; None without one."""
    signs: list[Path]
    """Where there is no checkpoint, the files by which there must have been one."""
    gone: str | None
    """Name of the newest checkpoint ever, where it is there no more."""

    @classmethod
    def of(cls, job: TrainJob) -> Remains:
        folder = Path(job.run_dir)
        step = checkpoint_step(folder)
        signs = [] if step is not None else _signs_of_checkpoints(job)
        newest = newest_ever(folder)
        gone = newest if newest and not (folder / CHECKPOINTS / newest).exists() else None
        return cls(folder, step, signs, gone)

    def refuse_another_configuration(self, job: TrainJob) -> None:
        """For a run that has a checkpoint: ConfigError where its config.yaml is missing, torn, or
        another one."""
        path = self.run_dir / CONFIG
        if path.exists():
            refuse_another(job, load_frozen(path))
            return
        if self.step is None:
            return  # it has them in checkpoint.remote alone, and goes on in a new folder
        raise missing_config(self.run_dir)

    def refuse_lost_checkpoints(self) -> None:
        """ConfigError where the run had checkpoints and has none: it would begin anew."""
        if self.signs:
            signs = ", ".join(map(str, self.signs))
            raise ConfigError(
                f"run_dir = {self.run_dir}: this run has saved checkpoints (seen by {signs}), and "
                f"there is none in {self.run_dir / CHECKPOINTS}: put them back, or begin anew from "
                f"step 0 with another run_dir, or with this one once you have moved away {signs}"
            )


def _signs_of_checkpoints(job: TrainJob) -> list[Path]:
    """The mark of the newest checkpoint; for runs that an earlier version began, without a mark,
    what shows that they have come further than to the first one."""
    folder = Path(job.run_dir)
    mark = folder / LAST_CHECKPOINT
    if mark.exists():
        return [mark] if newest_ever(folder) else []
    if any((folder / CHECKPOINTS).glob(".step_*.tmp")):
        return []  # killed while the first one was being written
    try:
        job = load_frozen(folder / CONFIG)
    except ConfigError:
        pass  # there is none that can be read
    reached = {
        folder / METRICS: last_logged_step(folder / METRICS),
        folder / EVALUATIONS: max(steps_of(folder / EVALUATIONS, "step_*.json"), default=0),
    }
    last_without = min(job.checkpoint.every_steps, job.train.steps - 1)
    return [path for path, step in reached.items() if step > last_without]


def last_logged_step(path: Path) -> int:
    """The largest step in metrics.jsonl; lines that cannot be read count for nothing."""
    step = 0
    try:
        with path.open("rb") as lines:
            for line in lines:
                try:
                    step = max(step, int(json.loads(line)["step"]))
                except (ValueError, KeyError, TypeError):
                    continue
    except OSError:
        return 0
    return step


def write_submitted(job: TrainJob) -> None:
    """Write the configuration of a Slurm job beside the run's own, which it becomes when the job
    starts. ConfigError where run_dir cannot be written."""
    try:
        write_text_aside(Path(job.run_dir) / SUBMITTED, to_yaml(job))
    except OSError as error:
        raise _cannot_write(job.run_dir, error) from error


def commit_config(job: TrainJob, begins: bool) -> None:
    """Make `job` the run's configuration: the one of a submission that began, or written anew.
    `begins`: the run starts from step 0. OSError leaves the file as it was."""
    path, submitted = Path(job.run_dir) / CONFIG, Path(job.run_dir) / SUBMITTED
    if begins:
        write_text_aside(path.with_name(LAST_CHECKPOINT), NO_CHECKPOINT_YET + "\n")
    if submitted.exists() and submitted.read_bytes() == to_yaml(job).encode():
        os.replace(submitted, path)
        sync_folder(path.parent)
    else:
        write_text_aside(path, to_yaml(job))
    remove_leftovers(path)
