"""Runs that have begun, as far as their folders show it."""

from __future__ import annotations

from pathlib import Path

from pipeline.config import TrainJob
from pipeline.config.run_config import commit_config, refuse_misfit


def begin(job: TrainJob, step: int = 5) -> Path:
    """What a start does that all ranks accept, and a checkpoint of it; returns config.yaml."""
    refuse_misfit(job)
    commit_config(job, begins=False)
    (Path(job.run_dir) / "checkpoints" / f"step_{step:08d}").mkdir(parents=True, exist_ok=True)
    return Path(job.run_dir) / "config.yaml"
