"""Rules for where a run writes."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path

from fsspec.core import split_protocol

from pipeline.config.choices import WandbMode
from pipeline.config.schema import LoggingConfig, TrainJob
from pipeline.config.validation.protocols import missing_protocol

NOT_IN_WANDB_PROJECTS = "/\\#?%:"
LONGEST_WANDB_PROJECT = 128


def validate_outputs(job: TrainJob) -> list[str]:
    return [
        *_run_dir(job.run_dir),
        *_remote(job.checkpoint.remote or ""),
        *_tensorboard(job),
        *_wandb(job.logging),
    ]


def _run_dir(run_dir: str) -> list[str]:
    if not run_dir.strip():
        return ["run_dir is not given: add run_dir=runs/NAME"]
    if split_protocol(run_dir)[0] is not None:
        return [
            f"run_dir = {run_dir}: is a URL; name a folder of this machine, and give the URL to "
            "checkpoint.remote for copies of the checkpoints"
        ]
    if run_dir.startswith("~"):
        return [
            f"run_dir = {run_dir}: the shell left ~ as it is; give {Path(run_dir).expanduser()}"
        ]
    problem = unwritable(Path(run_dir))
    return [f"run_dir = {run_dir}: {problem}"] if problem else []


def unwritable(folder: Path) -> str | None:
    """Why nothing can be written to `folder`, which need not be there yet, with the fix; None where
    nothing is known against it."""
    folder = folder.absolute()
    there = folder
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent  # also past folders that may not be looked into
    if not os.path.isdir(there):
        return (
            "is a file; name a folder"
            if there == folder
            else f"cannot be made, because {there} is no folder; name another"
        )
    try:  # permissions do not tell of read-only file systems, quotas and NFS without root
        os.rmdir(tempfile.mkdtemp(prefix=".probe_", dir=there))
    except OSError as error:
        return f"{there} cannot be written to ({error.strerror}); name another folder"
    return None


def new_folder_problem(folder: Path) -> str | None:
    """Why `folder`, which must not be there yet, cannot be written, with the fix."""
    if os.path.lexists(folder):
        return "exists; name a new folder, or remove it first"
    if ":" in folder.parts[0]:  # pathlib makes one slash of the two
        return "is a URL; name a folder of this machine, and copy it there"
    if str(folder).startswith("~"):
        return f"the shell left ~ as it is; give {os.path.expanduser(folder)}"
    return unwritable(folder)


def _remote(url: str) -> list[str]:
    protocol, _ = split_protocol(url)
    if protocol is None and ":" not in url:
        return []  # a folder, of the machine where the ranks run
    problem: str | None = "is no URL; give s3://bucket/folder, or a folder"
    if protocol is not None:
        problem = missing_protocol(url)
    return [f"checkpoint.remote = {url}: {problem}"] if problem else []


def _tensorboard(job: TrainJob) -> list[str]:
    if not job.logging.tensorboard or importlib.util.find_spec("tensorboard"):
        return []
    return [
        "logging.tensorboard = true: tensorboard is not installed; `pip install "
        "'clip-pretrain[tensorboard]'`, or leave it out"
    ]


def _wandb(logging: LoggingConfig) -> list[str]:
    """What Weights & Biases would refuse when the first rank has started."""
    name = logging.wandb_project
    if logging.wandb_mode is WandbMode.disabled:
        return []
    if len(name) <= LONGEST_WANDB_PROJECT and not set(name) & set(NOT_IN_WANDB_PROJECTS):
        return []
    return [
        f"logging.wandb_project = {name}: Weights & Biases takes at most {LONGEST_WANDB_PROJECT} "
        f"characters and none of {' '.join(NOT_IN_WANDB_PROJECTS)}; give another name"
    ]
