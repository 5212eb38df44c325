"""Compose a training job with Hydra from the words of a command line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data_tools.ground.conf_dir import conf_dir
from data_tools.ground.errors import error_chain
from data_tools.ground.override_values import wrong_values
from data_tools.ground.overrides import Configuration
from pipeline.config.frozen import load_frozen
from pipeline.config.run_files import checkpoint_step
from pipeline.config.schema import ClusterConfig, ConfigError, TrainJob
from pipeline.config.validation import validate

CONF_DIR = conf_dir()

ConfigStore.instance().store(name="train_schema", node=TrainJob)

CONFIGURATION = Configuration(TrainJob, CONF_DIR, "train")
"""What the words of a command line may set."""


def load_job(overrides: list[str]) -> TrainJob:
    """Compose conf/train.yaml with Hydra overrides (`experiment=demo train.steps=200`); ConfigError
    lists every problem."""
    words = for_hydra(overrides)
    wrong = wrong_values(CONFIGURATION, words)
    try:
        job = job_of(compose_words([word for word in words if word not in wrong]))
    except ConfigError as error:
        raise ConfigError("\n  ".join([str(error), *wrong.values()])) from error
    unread = [word.partition("=")[0] for word in wrong]
    problems = [*wrong.values(), *without(validate(job, begun_run(job.run_dir)), unread)]
    if problems:
        raise ConfigError("the training job is not valid:\n  " + "\n  ".join(problems))
    return job


def load_cluster(overrides: list[str]) -> ClusterConfig:
    """Only the cluster group of what the overrides compose to; nothing is validated. ConfigError
    where they do not compose."""
    words = for_hydra(overrides)
    wrong = wrong_values(CONFIGURATION, words)
    if wrong:
        raise ConfigError("\n  ".join(["the configuration does not compose:", *wrong.values()]))
    return job_of(compose_words(words)).cluster


def job_of(composed: DictConfig) -> TrainJob:
    try:
        job: TrainJob = OmegaConf.to_object(composed)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise ConfigError(f"the configuration does not compose: {error_chain(error)}") from error
    return job


def without(problems: list[str], names: Iterable[str]) -> list[str]:
    """Those problems that begin with none of the names."""
    return [problem for problem in problems if re.split("[ :]", problem)[0] not in names]


def compose_words(words: list[str]) -> DictConfig:
    """A group that a word chooses is what it is without the experiment beside it: the experiment's
    values lie over the files of all groups, and the command line wins over the experiment."""
    composed = hydra_compose(words)
    names = {word: word.partition("=")[0] for word in words}
    of_fields = {field.name for field in fields(TrainJob)}
    chosen = {name for name in names.values() if name in CONFIGURATION.groups and name in of_fields}
    over_groups = set(CONFIGURATION.groups) - of_fields
    if chosen and over_groups & set(names.values()):
        alone = hydra_compose([word for word in words if names[word] not in over_groups])
        for name in chosen:
            composed[name] = alone[name]
    return composed


def hydra_compose(words: list[str]) -> DictConfig:
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            return compose("train", words)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"the configuration does not compose: {error_chain(error)}") from error


def for_hydra(overrides: list[str]) -> list[str]:
    """The words with their texts quoted for Hydra. ConfigError names those that set no field."""
    quoted, refused = CONFIGURATION.quoted(overrides)
    refused += CONFIGURATION.unknown_names(overrides)
    if refused:
        raise ConfigError("the configuration does not compose:\n  " + "\n  ".join(refused))
    return quoted


def begun_run(run_dir: str) -> TrainJob | None:
    """The run that is in a folder, if it has come as far as a checkpoint."""
    path = Path(run_dir, "config.yaml")
    return load_frozen(path) if checkpoint_step(Path(run_dir)) and path.exists() else None
