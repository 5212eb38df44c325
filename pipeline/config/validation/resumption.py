"""Rules for going on with the run in run_dir."""

from __future__ import annotations

from pathlib import Path

from pipeline.config.schema import TrainJob


def validate_resumption(job: TrainJob, kept: TrainJob) -> list[str]:
    """`kept`: the run's configuration so far. That a job may differ from it is judged when it is
    frozen."""
    asked, had, done = job.train.steps, kept.train.steps, newest_step(Path(job.run_dir))
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


def newest_step(run_dir: Path) -> int:
    """The step of the newest checkpoint, whole or not; 0 where there is none."""
    names = (path.name.removeprefix("step_") for path in run_dir.glob("checkpoints/step_*"))
    return max((int(name) for name in names if name.isdecimal()), default=0)
