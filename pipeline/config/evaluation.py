"""The evaluation that a command line means: an earlier run, and the values that it uses."""

from __future__ import annotations

from pathlib import Path

from pipeline.config.arguments import earlier_run, single_values
from pipeline.config.composition import compose_words, for_hydra, job_of
from pipeline.config.frozen import load_frozen, values_by_name
from pipeline.config.run_files import no_average_in, no_run_in, no_such_step
from pipeline.config.schema import ConfigError, TrainJob
from pipeline.config.validation.evaluation import validate_evaluation

MODEL_FIELDS = ("model.", "loss.max_logit_scale")
"""What the weights of a run belong to."""
USED = ("eval.datasets", "eval.batch_size", "cluster.", "train.threads_per_rank", "model.", "loss.")


def evaluation_of_arguments(
    overrides: list[str], step: int | None, ema: bool | None
) -> tuple[TrainJob, list[str]]:
    """The run to score, and the names of given values that have no effect on it.

    ConfigError lists every problem of what an evaluation uses. Nothing of training is looked at:
    its data may be gone. Nothing is written.
    """
    job, given = _run_to_evaluate(overrides)
    run_dir = Path(job.run_dir)
    asked = [no_such_step(run_dir, step), no_average_in(run_dir, step, ema)]
    problems = [*filter(None, asked), *validate_evaluation(job)]
    if problems:
        raise ConfigError(f"{job.run_dir} cannot be evaluated:\n  " + "\n  ".join(problems))
    return job, [name for name in given if not name.startswith(USED)]


def _run_to_evaluate(overrides: list[str]) -> tuple[TrainJob, list[str]]:
    """The earlier run that a command line means, with the values given beside run_dir, and the full
    names of these; none where the words choose groups, such as experiment=demo.

    Nothing is validated, and nothing is written. ConfigError where there is no run, or where the
    words describe another model.
    """
    words = for_hydra(overrides)
    values = single_values(words)
    composed = None if "run_dir" in values else job_of(compose_words(words))
    run_dir = Path(composed.run_dir if composed else str(values["run_dir"]))
    problem = no_run_in(run_dir, given=bool(composed is None or composed.run_dir))
    if problem:
        raise ConfigError(problem)
    path = run_dir / "config.yaml"
    kept = load_frozen(path)
    job = composed or earlier_run(path, values)
    job.eval.datasets = job.eval.datasets or (kept.eval.datasets if composed else [])
    before, now = values_by_name(kept), values_by_name(job)
    others = [
        f"{name} = {now[name]}: the weights are of a model with {before[name]}; leave it out"
        for name in now
        if name.startswith(MODEL_FIELDS) and now[name] != before[name]
    ]
    if others:
        raise ConfigError(f"run_dir = {run_dir}: holds another model\n  " + "\n  ".join(others))
    return job, [name for name in values if name != "run_dir"]
