"""Starts the ranks of an evaluation. Nothing is frozen: every rank gets the words of the command
line and reads the run's config.yaml itself, so an evaluation writes no configuration."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from data_tools.ground import command_line, exit_codes, settings
from pipeline import launch
from pipeline.commands import EVALUATE, EvaluateSettings
from pipeline.config import ConfigError, TrainJob
from pipeline.config.evaluation import evaluation_of_arguments

RANK = "--rank"
"""The first word of a rank; the words of the command line follow."""

RankMain = Callable[[TrainJob, EvaluateSettings], None]


def main(rank_main: RankMain, arguments: list[str]) -> int:
    """Entry of `python -m pipeline.evaluate`, for the launcher and for ranks.

    Returns REFUSED (data_tools.ground.exit_codes) for a command line or a run that was refused;
    else the process ends here, with 0 or the code of the rank that failed first.
    """
    if not is_rank(arguments):
        return launch_evaluation(arguments)
    try:
        options, overrides = settings.parse(EVALUATE, arguments[1:])
        job, _ = evaluation_of_arguments(overrides, options.step, options.ema)
    except (settings.Refused, ConfigError) as error:
        # the launcher took these words: something changed since, and one rank says so for all
        if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
            print(f"error: {error}", file=sys.stderr)
        return exit_codes.REFUSED
    launch.exit_now(launch.run_rank(lambda job: rank_main(job, options), job))


def is_rank(arguments: list[str]) -> bool:
    return arguments[:1] == [RANK]


def launch_evaluation(arguments: list[str]) -> int:
    """Check the words, start the ranks of this machine and end with their code; returns the code of
    a command line that was refused."""

    def start(options: EvaluateSettings, overrides: list[str]) -> NoReturn:
        job, unused = evaluation_of_arguments(overrides, options.step, options.ema)
        if job.cluster.nodes > 1:
            raise ConfigError(
                f"cluster.nodes = {job.cluster.nodes}: one command starts the ranks of one "
                f"machine; for several nodes use `python -m slurm.submit --evaluate` with the same "
                f"arguments, or score on this machine with cluster.nodes=1"
            )
        launch.refuse_gpus_without_work(job.cluster, trains=False)
        tell_unused(unused)
        words = [RANK, *arguments]
        launch.exit_now(
            launch.start_ranks(EVALUATE.name, words, Path(job.run_dir), job.cluster.ranks_per_node)
        )

    return command_line.run(EVALUATE, arguments, start)


def tell_unused(names: list[str]) -> None:
    if names:
        print(f"no effect on an evaluation: {', '.join(names)}", file=sys.stderr)
