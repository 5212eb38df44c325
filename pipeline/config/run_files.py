"""What lies in the folder of a run, by name, and what is missing there; no torch."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from pipeline.config.schema import ConfigError

CONFIG = "config.yaml"
"""The run's configuration: written when all ranks have accepted it and can start. Each checkpoint
has a copy."""
SUBMITTED = "config.submitted.yaml"
"""That of a Slurm job which has not begun; then it becomes CONFIG."""
LAST_CHECKPOINT = "last_checkpoint"
"""Name of the newest checkpoint ever, or NO_CHECKPOINT_YET; by it a start notices that checkpoints
are gone."""
NO_CHECKPOINT_YET = "none"
LOCK = ".lock"
"""Held by whoever trains here."""
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
EVALUATIONS = "eval"
EXPORT_FILES = ("model_config.json", "open_clip_config.json", "config.json")
"""Each is in one of the formats of pipeline.export."""


def name_of(step: int) -> str:
    return f"step_{step:08d}"


def steps_in(folder: Path) -> list[int]:
    """Steps that have a checkpoint, newest first, whole or damaged."""
    names = (path.name.removeprefix("step_") for path in folder.glob("step_*"))
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def checkpoint_step(run_dir: Path) -> int | None:
    """Step of the newest checkpoint, whole or not; None without one."""
    folder = run_dir / CHECKPOINTS
    # the second were being replaced when the run was killed, and get their names back
    steps = [*steps_of(folder, "step_*"), *steps_of(folder, ".step_*.replaced.tmp")]
    return max(steps, default=None)


def newest_ever(run_dir: Path) -> str | None:
    """Name of the newest checkpoint that was ever written; None where none was, or an earlier
    version wrote them."""
    try:
        name = (run_dir / LAST_CHECKPOINT).read_text(errors="replace").strip()
    except OSError:
        return None
    return None if name == NO_CHECKPOINT_YET else name


def steps_of(folder: Path, pattern: str) -> list[int]:
    """Steps of the files and folders step_N or step_N.* that fit `pattern`."""
    names = (path.name.lstrip(".").partition(".")[0] for path in folder.glob(pattern))
    numbers = (name.removeprefix("step_") for name in names)
    return [int(number) for number in numbers if number.isdecimal()]


def config_of_run(run_dir: Path) -> Path | None:
    """The run's configuration; that of a Slurm job which has not begun where there is no other."""
    there = (run_dir / name for name in (CONFIG, SUBMITTED))
    return next((path for path in there if path.exists()), None)


def newer_config(run_dir: Path) -> Path | None:
    """What a Slurm job of the run goes on with: the newer of a submission that has not begun and of
    the run's own, as train.sbatch chooses."""
    there = [path for path in (run_dir / SUBMITTED, run_dir / CONFIG) if path.exists()]
    return max(there, key=lambda path: path.stat().st_mtime_ns, default=None)


def missing_config(run_dir: Path) -> ConfigError:
    """The error of a folder that has no configuration, but checkpoints or nothing."""
    step = checkpoint_step(run_dir)
    if step is None:
        return ConfigError(f"{run_dir / CONFIG}: no such file, and no checkpoints: no run is there")
    return ConfigError(
        f"run_dir = {run_dir}: has checkpoints, the newest of step {step}, but no {CONFIG}, so "
        f"that nobody can tell whether they are of this configuration; {way_back(run_dir)}"
    )


def way_back(run_dir: Path) -> str:
    """What to do where the run's configuration is missing or damaged."""
    step, config = checkpoint_step(run_dir), run_dir / CONFIG
    if step is None:
        return "without a checkpoint it can go: delete it, and give the run's first command again"
    copies = sorted((run_dir / CHECKPOINTS).glob(f"step_*/{CONFIG}"))
    if copies:
        command = shlex.join(["cp", str(copies[-1]), str(config)])
        return f"its newest checkpoint has a copy: {command}"
    return (
        "put it back from a copy, or have it written anew: start the run's first command with "
        f"another run_dir, and copy the {CONFIG} that it writes to {config}"
    )


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
            f"are of; {way_back(run_dir)}"
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
