"""The evaluation of a run as a Slurm job of all ranks. It may wait or run beside a training of that
run: its folder is run_dir/eval, and it writes no configuration."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from pipeline.commands import EvaluateSettings
from pipeline.config import ConfigError
from pipeline.config.evaluation import evaluation_of_arguments
from pipeline.launch_evaluation import tell_unused
from slurm.jobs import Step, Submission, sbatch_script, slurm_problems_too
from slurm.options import cluster_problems, sbatch_options, setup_script


def evaluation_submission(overrides: list[str], options: EvaluateSettings) -> Submission:
    """The words are those of pipeline.evaluate; the run's `cluster` says where it runs unless they
    do. ConfigError lists every problem."""
    try:
        job, unused = evaluation_of_arguments(overrides, options.step, options.ema)
    except ConfigError as error:
        raise ConfigError("\n  ".join([str(error), *slurm_problems_too(overrides)])) from error
    problems = cluster_problems(job.cluster, warned=False)
    if problems:
        raise ConfigError(f"{job.run_dir} cannot be evaluated:\n  " + "\n  ".join(problems))
    tell_unused(unused)
    run_dir = Path(job.run_dir)
    folder, script = run_dir / "eval", sbatch_script("evaluate.sbatch")
    setup = setup_script(job.cluster, sys.executable)
    # by its content: several evaluations may wait, each with another cluster.setup
    setup_file = f"setup_{hashlib.sha256(setup.encode()).hexdigest()[:8]}.sh"
    chosen = {"step": options.step, "ema": options.ema}
    words = [f"{name}={str(value).lower()}" for name, value in chosen.items() if value is not None]
    slurm_options = sbatch_options(
        job.cluster,
        folder.resolve(),
        Path.cwd(),
        name=f"{run_dir.resolve().name}-eval",
        warned=False,
    )
    command = ["sbatch", *slurm_options, str(script), str(folder / setup_file), *overrides, *words]
    return Submission(
        folder, script, (Step("evaluate", command),), setup, None, setup_file, alone=False
    )
