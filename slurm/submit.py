"""Compose, validate, freeze, submit: the training or dataset job of a command line, as a Slurm job.

    python -m slurm.submit experiment=... cluster=multi_node cluster.partition=gpu   train
    python -m slurm.submit run_dir=runs/mine                                go on with that run
    python -m slurm.submit --shards queries.path=... out_dir=... cluster.time_limit=8:00:00
    ... --dry-run                                               print what would be submitted

Runs on a login node: needs neither torch nor a GPU. Exit codes: 0 submitted, 1 Slurm refused, 2 the
configuration or the command line was refused.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import data_tools.config
from pipeline.config import (
    ClusterConfig,
    ConfigError,
    TrainJob,
    freeze,
    job_of_arguments,
    load_cluster,
)
from slurm.options import SETUP_FILE, cluster_problems, sbatch_options, setup_script

EXIT_SLURM = 1
EXIT_BAD_CONFIG = 2
SLURM_TIMEOUT_S = 60.0
REPOSITORY = Path(__file__).resolve().parents[1]
# Slurm sets more inside an allocation, and a job submitted from there would inherit its sizes.
KEPT_SLURM_VARIABLES = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT")


class SlurmError(RuntimeError):
    """Slurm is not there, did not answer, or refused; the message carries what it said."""


@dataclass(frozen=True)
class Submission:
    """What goes to sbatch. `folder` is the job's own: run_dir, or out_dir of a dataset job."""

    folder: Path
    script: Path
    command: list[str]
    setup: str
    train: TrainJob | None
    """None for a dataset job, whose configuration data_tools.build writes itself."""


def training_submission(overrides: list[str]) -> Submission:
    """ConfigError lists every problem of the job, those with Slurm's options included."""
    try:
        job = job_of_arguments(overrides)
    except ConfigError as error:
        raise ConfigError("\n  ".join([str(error), *_slurm_problems_too(overrides)])) from error
    problems = cluster_problems(job.cluster)
    if problems:
        raise ConfigError("the training job is not valid:\n  " + "\n  ".join(problems))
    grace_s = job.cluster.signal_before_s - 10  # the rest is for the requeue itself
    return _submission(
        Path(job.run_dir), job.cluster, "train.sbatch", [job.run_dir, str(grace_s)], job
    )


def shards_submission(words: list[str]) -> Submission:
    """`cluster=` and `cluster.*` say where it runs, all other words are data_tools.build's."""
    ours = [word for word in words if word.partition("=")[0].split(".")[0] == "cluster"]
    overrides = [word for word in words if word not in ours]
    problems = []
    cluster = ClusterConfig()
    try:
        cluster = load_cluster(ours)
        problems += cluster_problems(cluster)
        if (cluster.nodes, cluster.ranks_per_node, cluster.gpus_per_node) != (1, 1, 0):
            problems.append(
                f"cluster.nodes, ranks_per_node, gpus_per_node = {cluster.nodes}, "
                f"{cluster.ranks_per_node}, {cluster.gpus_per_node}: a dataset job is one process "
                "on one node without GPUs; leave them out, and give cluster.cpus_per_rank"
            )
    except ConfigError as error:
        problems.append(str(error))
    folder = ""
    try:
        folder = data_tools.config.load_job(overrides).out_dir
    except data_tools.config.ConfigError as error:
        problems.insert(0, str(error))
    if problems:
        raise ConfigError("\n  ".join(problems))
    return _submission(Path(folder), cluster, "shards.sbatch", [folder, *overrides], None)


def _slurm_problems_too(overrides: list[str]) -> list[str]:
    """So that a refused job hears of everything at once; nothing where it does not even compose."""
    try:
        return cluster_problems(load_cluster(overrides))
    except ConfigError:
        return []


def _submission(
    folder: Path, cluster: ClusterConfig, script: str, arguments: list[str], train: TrainJob | None
) -> Submission:
    path = Path(__file__).resolve().with_name(script)
    options = sbatch_options(cluster, folder.resolve(), Path.cwd())
    command = ["sbatch", *options, str(path), *arguments]
    return Submission(folder, path, command, setup_script(cluster, sys.executable), train)


def dry_run(submission: Submission) -> str:
    """What would be submitted; writes nothing. ConfigError when the folder holds another run."""
    config = submission.folder / "config.yaml"
    if submission.train is not None and config.exists():
        with tempfile.TemporaryDirectory() as copy:
            (Path(copy) / "config.yaml").write_bytes(config.read_bytes())
            try:
                freeze(replace(submission.train, run_dir=copy))
            except ConfigError as error:
                raise ConfigError(str(error).replace(copy, str(submission.folder))) from error
    return (
        f"{shlex.join(submission.command)}\n\n"
        f"# {submission.folder / SETUP_FILE}\n{submission.setup}\n"
        f"# {submission.script}\n{submission.script.read_text()}"
    )


def submit(submission: Submission) -> str:
    """Freeze, submit, record in submit.json; returns the job's id.

    A refused submission leaves the folder as it was: the next may have another configuration.
    Raises ConfigError, or SlurmError with what sbatch said.
    """
    folder = submission.folder
    _refuse_while_queued(folder)
    was_there, had_config = folder.exists(), (folder / "config.yaml").exists()
    if submission.train is not None:
        freeze(submission.train)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / SETUP_FILE, submission.setup)
    try:
        job_id = _ask_slurm(submission.command).partition(";")[0].strip()
    except SlurmError:
        (folder / SETUP_FILE).unlink()
        if submission.train is not None and not had_config:
            (folder / "config.yaml").unlink()
        if not was_there:
            folder.rmdir()
        raise
    entry = {
        "job_id": job_id,
        "submitted_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": submission.command,
        "python": sys.executable,
        **git_state(),
    }
    _write(folder / "submit.json", json.dumps([*_earlier(folder), entry], indent=1) + "\n")
    return job_id


def git_state() -> dict[str, str | bool | None]:
    """Commit of the code, and whether tracked files differ from it; None outside a git clone."""
    git = ["git", "-C", str(REPOSITORY)]
    try:
        commit = _output([*git, "rev-parse", "HEAD"])
        changes = _output([*git, "status", "--porcelain", "--untracked-files=no"])
    except (OSError, subprocess.SubprocessError):
        return {"git_commit": None, "git_dirty": None}
    return {"git_commit": commit.strip(), "git_dirty": bool(changes.strip())}


def _refuse_while_queued(folder: Path) -> None:
    """Two jobs in one run directory would overwrite each other's checkpoints."""
    for entry in _earlier(folder)[-1:]:
        listing = ["squeue", "--noheader", f"--jobs={entry['job_id']}", "--format=%T"]
        try:
            state = _output(listing).strip()
        except FileNotFoundError as error:
            raise SlurmError("squeue: not found; submit on a login node of the cluster") from error
        except subprocess.CalledProcessError:
            continue  # Slurm has forgotten the job
        except subprocess.TimeoutExpired as error:
            raise SlurmError(f"squeue did not answer within {SLURM_TIMEOUT_S:.0f} s") from error
        if state:
            raise SlurmError(
                f"{folder}: its job {entry['job_id']} is {state.lower()}; wait for its end or stop "
                f"it with `scancel {entry['job_id']}`"
            )


def _ask_slurm(command: list[str]) -> str:
    try:
        return _output(command)
    except FileNotFoundError as error:
        raise SlurmError(
            "sbatch: not found; submit on a login node of the cluster, or see what would be "
            "submitted with --dry-run"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(
            f"sbatch did not answer within {SLURM_TIMEOUT_S:.0f} s; see `squeue --me` before you "
            "submit again"
        ) from error
    except subprocess.CalledProcessError as error:
        raise SlurmError(
            f"sbatch refused (code {error.returncode}): {error.stderr.strip()}"
        ) from error


def _output(command: list[str]) -> str:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SLURM_") or name in KEPT_SLURM_VARIABLES
    }
    return subprocess.run(
        command,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=SLURM_TIMEOUT_S,
    ).stdout


def _earlier(folder: Path) -> list[dict[str, object]]:
    path = folder / "submit.json"
    return list(json.loads(path.read_text())) if path.exists() else []


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(text)
    os.replace(aside, path)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m slurm.submit", description=__doc__.split("\n")[0]
    )
    told = {
        "--shards": "build a data set: overrides of conf/dataset.yaml, and cluster.*",
        "--dry-run": "print the command and the script, submit nothing",
    }
    for flag, text in told.items():
        parser.add_argument(flag, action="store_true", help=text)
    parser.add_argument("overrides", nargs="*", help="as for python -m pipeline.train")
    options = parser.parse_intermixed_args(arguments)
    try:
        plan = shards_submission if options.shards else training_submission
        submission = plan(options.overrides)
        if options.dry_run:
            print(dry_run(submission), end="")
            return 0
        job_id = submit(submission)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_CONFIG
    except SlurmError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_SLURM
    print(f"submitted job {job_id}; its output: {submission.folder / f'slurm-{job_id}.out'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
