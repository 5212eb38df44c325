"""What a command line asks Slurm for: one job, or for a data set a chain of them.

training    train.sbatch, one job of all ranks
evaluation  evaluate.sbatch, one job of all ranks: evaluation.py
data set    shards.sbatch, one job; with `--tasks N` arrays where the work divides:
            (with a pool: queries -> match (array) ->) search ... balance -> crawl (array)
                -> curate, rebalance -> pack (array) -> report
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import data_tools.config
from data_tools.ground.overrides import Configuration
from pipeline.config import ClusterConfig, ConfigError, TrainJob, composition
from pipeline.config.arguments import job_of_arguments
from pipeline.config.composition import load_cluster
from pipeline.config.run_files import newer_config
from slurm.options import SETUP_FILE, cluster_problems, sbatch_options, setup_script

BUILD = "data_tools.build"


@dataclass(frozen=True)
class Step:
    """One sbatch; it waits for the success of the step before it."""

    name: str
    command: list[str]


@dataclass(frozen=True)
class Submission:
    """What goes to sbatch. `folder` is the job's own: run_dir, or out_dir of a dataset job."""

    folder: Path
    script: Path
    steps: tuple[Step, ...]
    setup: str
    train: TrainJob | None
    """None where nothing is frozen: a dataset job, whose configuration data_tools.build writes
    itself, and an evaluation, which reads that of the run."""
    setup_file: str = SETUP_FILE
    """Name of the file in `folder` that every rank sources."""
    alone: bool = True
    """Whether it is refused while the folder's last job is queued or runs."""


def configuration(shards: bool) -> Configuration:
    """What the words may set: the training job's fields, or with `shards` the dataset job's and
    those of `cluster`."""
    train = composition.CONFIGURATION
    if not shards:
        return train
    cluster = replace(train, only="cluster")
    return replace(data_tools.config.CONFIGURATION, also=cluster)


def training_submission(overrides: list[str]) -> Submission:
    """ConfigError lists every problem of the job, those with Slurm's options included."""
    try:
        job = job_of_arguments(overrides, kept=newer_config)
    except ConfigError as error:
        raise ConfigError("\n  ".join([str(error), *slurm_problems_too(overrides)])) from error
    problems = cluster_problems(job.cluster)
    if problems:
        raise ConfigError("the training job is not valid:\n  " + "\n  ".join(problems))
    grace_s = job.cluster.signal_before_s - 10  # the rest is for the requeue itself
    folder, script = Path(job.run_dir), sbatch_script("train.sbatch")
    options = sbatch_options(job.cluster, folder.resolve(), Path.cwd())
    command = ["sbatch", *options, str(script), job.run_dir, str(grace_s)]
    return Submission(
        folder, script, (Step("train", command),), setup_script(job.cluster, sys.executable), job
    )


def shards_submission(words: list[str], tasks: str = "") -> Submission:
    """`cluster=` and `cluster.*` say where it runs, all other words are data_tools.build's.

    `tasks` is "64", or "64%16" for at most 16 at a time: arrays for match, crawl, each round that
    asks again, and pack.
    """
    ours = [word for word in words if word.partition("=")[0].split(".")[0] == "cluster"]
    overrides = [word for word in words if word not in ours]
    problems = []
    cluster = ClusterConfig()
    try:
        cluster = load_cluster(ours)
        problems += cluster_problems(replace(cluster, gpus_per_node=0))
        if (cluster.nodes, cluster.ranks_per_node, cluster.gpus_per_node) != (1, 1, 0):
            problems.append(
                f"cluster.nodes, ranks_per_node, gpus_per_node = {cluster.nodes}, "
                f"{cluster.ranks_per_node}, {cluster.gpus_per_node}: a dataset job is one process "
                "on one node without GPUs, and more nodes are --tasks; leave them out, and give "
                "cluster.cpus_per_rank"
            )
    except ConfigError as error:
        problems.append(str(error))
    if tasks and not re.fullmatch(r"[1-9]\d*(%[1-9]\d*)?", tasks):
        problems.append(f"--tasks {tasks}: give N, or N%M for at most M at a time, such as 64%16")
    folder, with_pool, rounds = "", False, 0
    try:
        job = data_tools.config.load_job(overrides)
        folder, with_pool = job.out_dir, job.sources.pool.enabled
        rounds = data_tools.config.crawl.retry_rounds(job.crawl)
    except data_tools.config.ConfigError as error:
        problems.insert(0, str(error))
    if problems:
        raise ConfigError("\n  ".join(problems))
    script = sbatch_script("shards.sbatch")
    steps = []
    for name, array, module in _chain(tasks, with_pool, rounds):
        options = sbatch_options(cluster, Path(folder).resolve(), Path.cwd(), array)
        steps.append(Step(name, ["sbatch", *options, str(script), folder, *module, *overrides]))
    setup = setup_script(cluster, sys.executable)
    return Submission(Path(folder), script, tuple(steps), setup, None)


def _chain(tasks: str, with_pool: bool, rounds: int) -> list[tuple[str, str, list[str]]]:
    """(name, array, module and its flags). An array does what divides; the build after it takes
    that for done and puts it together. A round of the crawl that asks again can begin when all
    tasks have done the round before, so it is an array of its own."""
    if not tasks:
        return [("build", "", [BUILD])]
    number, _, at_a_time = tasks.partition("%")
    array = f"0-{int(number) - 1}" + (f"%{at_a_time}" if at_a_time else "")
    match = [
        ("queries", "", [BUILD, "--until", "queries"]),
        ("match", array, [BUILD, "--stage", "match"]),
    ]
    return [
        *(match if with_pool else []),
        ("balance", "", [BUILD, "--until", "balance"]),
        ("crawl", array, [BUILD, "--stage", "crawl"]),
        *((f"retry_{n}", array, [BUILD, "--stage", "crawl"]) for n in range(1, rounds + 1)),
        ("rebalance", "", [BUILD, "--until", "rebalance"]),
        ("pack", array, [BUILD, "--stage", "pack"]),
        ("report", "", [BUILD]),
    ]


def sbatch_script(name: str) -> Path:
    return Path(__file__).resolve().with_name(name)


def slurm_problems_too(overrides: list[str]) -> list[str]:
    """So that a refused job hears of everything at once; nothing where it does not even compose."""
    try:
        return cluster_problems(load_cluster(overrides))
    except ConfigError:
        return []
