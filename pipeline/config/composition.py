"""Composed once by Hydra, frozen into the run directory, read back through the schema by every
rank."""

from __future__ import annotations

import dataclasses
import difflib
import os
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.config.schema import ClusterConfig, ConfigError, ModelConfig, TrainJob
from pipeline.config.validation import validate

CONF_DIR = Path(__file__).resolve().parents[2] / "conf"

ConfigStore.instance().store(name="train_schema", node=TrainJob)


def load_job(overrides: list[str]) -> TrainJob:
    """Compose conf/train.yaml with Hydra overrides (`experiment=demo train.steps=200`); ConfigError
    lists every problem."""
    try:
        job: TrainJob = OmegaConf.to_object(_compose(overrides))  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise ConfigError(f"the configuration does not compose: {_whole_story(error)}") from error
    problems = validate(job)
    if problems:
        raise ConfigError("the training job is not valid:\n  " + "\n  ".join(problems))
    return job


def load_cluster(overrides: list[str]) -> ClusterConfig:
    """The cluster group alone of what the overrides compose to; the rest is not validated."""
    try:
        cluster: ClusterConfig = OmegaConf.to_object(  # type: ignore[assignment]
            _compose(overrides).cluster
        )
    except OmegaConfBaseException as error:
        raise ConfigError(f"the configuration does not compose: {_whole_story(error)}") from error
    return cluster


def _compose(overrides: list[str]) -> DictConfig:
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            return compose("train", overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"the configuration does not compose: {_whole_story(error)}") from error


def load_frozen(path: Path | str) -> TrainJob:
    """Read a run's config.yaml back through the schema: an unknown key or a wrong type is refused
    here too."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(TrainJob), OmegaConf.load(path))
        job: TrainJob = OmegaConf.to_object(merged)  # type: ignore[assignment]
    except (OSError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: {_whole_story(error)}") from error
    return job


def load_model_config(content: dict[str, Any]) -> ModelConfig:
    """The model group from plain values, as an export writes them. ConfigError."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(ModelConfig), content)
        config: ModelConfig = OmegaConf.to_object(merged)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise ConfigError(_whole_story(error)) from error
    return config


def to_yaml(job: TrainJob) -> str:
    return OmegaConf.to_yaml(OmegaConf.structured(job))


def freeze(job: TrainJob) -> Path:
    """Write run_dir/config.yaml, which the ranks load; returns its path.

    A run directory that holds another configuration is refused with the difference: a resumed run
    must be the run that was started. `cluster`, `logging` and the speed of loading may change:
    where it runs, what it prints and how fast it reads is not what it computes.
    """
    path = Path(job.run_dir) / "config.yaml"
    if path.exists():
        kept = load_frozen(path)
        data = dataclasses.replace(
            job.data,
            num_workers=kept.data.num_workers,
            prefetch_batches=kept.data.prefetch_batches,
        )
        comparable = dataclasses.replace(job, cluster=kept.cluster, logging=kept.logging, data=data)
        comparable.run_dir = kept.run_dir
        before, now = to_yaml(kept).splitlines(), to_yaml(comparable).splitlines()
        if before != now:
            lines = difflib.unified_diff(before, now, "of the run", "given now", lineterm="", n=0)
            changes = "\n  ".join(line for line in lines if not line.startswith("@@"))
            raise ConfigError(
                f"run_dir = {job.run_dir}: holds a run of another configuration:\n  {changes}\n"
                "name another run_dir, or resume with nothing but run_dir=... given"
            )
        if job.world_size != kept.world_size:
            raise ConfigError(
                f"cluster.nodes x cluster.ranks_per_node = {job.world_size}: the run in "
                f"{job.run_dir} has "
                f"{kept.world_size} ranks, and its optimizer state is sharded over them; resume "
                f"with the same number"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(".config.yaml.tmp")
    aside.write_text(to_yaml(job))
    os.replace(aside, path)
    return path


def job_of_arguments(overrides: list[str]) -> TrainJob:
    """The job that a command line means: `run_dir=X` alone, where X is an earlier run, is that run;
    else compose."""
    run_dirs = [word.partition("=")[2] for word in overrides if word.startswith("run_dir=")]
    if len(overrides) == 1 and run_dirs and (Path(run_dirs[0]) / "config.yaml").exists():
        job = load_frozen(Path(run_dirs[0]) / "config.yaml")
        job.run_dir = run_dirs[0]  # the folder may have been moved
        problems = validate(job)
        if problems:
            raise ConfigError(f"the run in {run_dirs[0]} cannot go on:\n  " + "\n  ".join(problems))
        return job
    return load_job(overrides)


def _whole_story(error: BaseException) -> str:
    """Hydra names the override, the exception behind it says what is wrong with it: both, without
    tracebacks."""
    told = [str(error).split("\nConfig search path")[0].strip()]
    while error.__cause__ is not None:
        error = error.__cause__
        told.append(str(error).strip().split("\n")[0])
    return "\n  ".join(dict.fromkeys(told))
