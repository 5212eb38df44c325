"""The evaluation that a command line means: an earlier run, and the values that it uses."""

from __future__ import annotations

from pathlib import Path

from pipeline.config.composition import run_to_evaluate
from pipeline.config.run_files import no_average_in, no_such_step
from pipeline.config.schema import ConfigError, TrainJob
from pipeline.config.validation.evaluation import validate_evaluation

USED = ("eval.datasets", "eval.batch_size", "cluster.", "train.threads_per_rank", "model.", "loss.")


def evaluation_of_arguments(
    overrides: list[str], step: int | None, ema: bool | None
) -> tuple[TrainJob, list[str]]:
    """The run to score, and the names of given values that have no effect on it.

    ConfigError lists every problem of what an evaluation uses. Nothing of training is looked at:
    its data may be gone. Nothing is written.
    """
    job, given = run_to_evaluate(overrides)
    run_dir = Path(job.run_dir)
    asked = [no_such_step(run_dir, step), no_average_in(run_dir, step, ema)]
    problems = [*filter(None, asked), *validate_evaluation(job)]
    if problems:
        raise ConfigError(f"{job.run_dir} cannot be evaluated:\n  " + "\n  ".join(problems))
    return job, [name for name in given if not name.startswith(USED)]
