"""What lies in the folder of a run, by name."""

from __future__ import annotations

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
