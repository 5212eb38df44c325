"""Rules for going on with the run in run_dir."""

from __future__ import annotations

from pathlib import Path

from pipeline.config.run_files import checkpoint_step
from pipeline.config.schema import TrainJob


def validate_resumption(job: TrainJob, kept: TrainJob) -> list[str]:
    """`kept`: the run's configuration so far. That a job may differ from it is judged by
    `refuse_another`."""
    asked, had, done = job.train.steps, kept.train.steps, checkpoint_step(Path(job.run_dir)) or 0
    if asked >= done:
        return []
    finished = f"train.steps = {asked}: the run has done {done} steps already; "
    if had >= done:
        return [
            f"{finished}leave it out (the run has train.steps = {had}), or give more than {had} "
            "with force=[train.steps]"
        ]
    return [
        f"{finished}give train.steps={done} force=[train.steps], and it is finished, or more, and "
        "it goes on"
    ]
