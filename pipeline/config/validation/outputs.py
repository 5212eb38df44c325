"""Rules for where a run writes."""

from __future__ import annotations

import importlib.util
import os

import fsspec
from fsspec.core import split_protocol

from pipeline.config.schema import TrainJob


def validate_outputs(job: TrainJob) -> list[str]:
    return _run_dir(job.run_dir) + _remote(job.checkpoint.remote or "") + _tensorboard(job)


def _run_dir(run_dir: str) -> list[str]:
    """Whether it can be written is seen when a training locks it."""
    if not run_dir:
        return ["run_dir is not given: add run_dir=runs/NAME"]
    if os.path.exists(run_dir) and not os.path.isdir(run_dir):
        return [f"run_dir = {run_dir}: is a file; name a folder"]
    return []


def _remote(url: str) -> list[str]:
    """Whether the store answers is seen when the run starts; here, whether fsspec can ask it."""
    protocol, _ = split_protocol(url)
    if protocol is None and ":" not in url:
        return []  # a folder of this machine
    if protocol is None:
        return [f"checkpoint.remote = {url}: is no URL; give s3://bucket/folder, or a folder"]
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        return [
            f"checkpoint.remote = {url}: the package for {protocol}:// is missing ({error}); "
            f"install it (s3fs for s3://, gcsfs for gs://, adlfs for abfs://)"
        ]
    except ValueError:
        return [
            f"checkpoint.remote = {url}: fsspec knows no {protocol}://; give s3://, gs://, "
            f"abfs:// or a folder"
        ]
    return []


def _tensorboard(job: TrainJob) -> list[str]:
    if not job.logging.tensorboard or importlib.util.find_spec("tensorboard"):
        return []
    return [
        "logging.tensorboard = true: tensorboard is not installed; `pip install "
        "'clip-pretrain[tensorboard]'`, or leave it out"
    ]
