"""Compose a training job with Hydra, and read it back through the schema on every rank."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from data_tools.ground.conf_dir import conf_dir
from data_tools.ground.errors import error_chain
from data_tools.ground.fields import changeable_names
from data_tools.ground.overrides import Configuration
from pipeline.config.run_files import checkpoint_step, config_of_run, missing_config, way_back
from pipeline.config.schema import ClusterConfig, ConfigError, ModelConfig, TrainJob
from pipeline.config.validation import validate

CONF_DIR = conf_dir()

# Fields that are off when null, and what was off before: runs that older versions began hold it.
OFF_BEFORE_NULL: dict[str, int | float | str] = {
    "train.image_micro_batch_size": 0,
    "train.text_micro_batch_size": 0,
    "train.ema_decay": 0.0,
    "train.threads_per_rank": 0,
    "checkpoint.every_minutes": 0.0,
    "checkpoint.remote": "",
    "health.loss_spike": 0.0,
    "eval.every_steps": 0,
    "logging.wandb_entity": "",
    "cluster.partition": "",
    "cluster.account": "",
    "cluster.qos": "",
}

DATA = ("data.manifest", "data.mixture", "data.stream")
"""Fields that name the data, which may change while the names stay."""

ConfigStore.instance().store(name="train_schema", node=TrainJob)

CONFIGURATION = Configuration(TrainJob, CONF_DIR, "train")
"""What the words of a command line may set."""


def load_job(overrides: list[str]) -> TrainJob:
    """Compose conf/train.yaml with Hydra overrides (`experiment=demo train.steps=200`); ConfigError
    lists every problem."""
    try:
        job: TrainJob = OmegaConf.to_object(_compose(overrides))  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise ConfigError(f"the configuration does not compose: {error_chain(error)}") from error
    problems = validate(job)
    if problems:
        raise ConfigError("the training job is not valid:\n  " + "\n  ".join(problems))
    return job


def load_cluster(overrides: list[str]) -> ClusterConfig:
    """Only the cluster group of what the overrides compose to; nothing is validated. ConfigError
    where they do not compose."""
    try:
        cluster: ClusterConfig = OmegaConf.to_object(  # type: ignore[assignment]
            _compose(overrides).cluster
        )
    except OmegaConfBaseException as error:
        raise ConfigError(f"the configuration does not compose: {error_chain(error)}") from error
    return cluster


def _compose(overrides: list[str]) -> DictConfig:
    quoted = _for_hydra(overrides)
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            return compose("train", quoted)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"the configuration does not compose: {error_chain(error)}") from error


def _for_hydra(overrides: list[str]) -> list[str]:
    """The words with their texts quoted for Hydra. ConfigError names those that set no field."""
    quoted, refused = CONFIGURATION.quoted(overrides)
    refused += CONFIGURATION.unknown_names(overrides)
    if refused:
        raise ConfigError("the configuration does not compose:\n  " + "\n  ".join(refused))
    return quoted


def load_frozen(path: Path | str) -> TrainJob:
    """Read a run's config.yaml back through the schema. ConfigError for an unknown key or a wrong
    type, as on the command line, and for a file of which a part is missing."""
    try:
        frozen = OmegaConf.load(path)
        torn = _torn(frozen)
        if torn:
            raise ConfigError(f"{path} {torn}; {way_back(Path(path).parent)}")
        for name, off in OFF_BEFORE_NULL.items():
            if OmegaConf.select(frozen, name) == off:
                OmegaConf.update(frozen, name, None)
        merged = OmegaConf.merge(OmegaConf.structured(TrainJob), frozen)
        job: TrainJob = OmegaConf.to_object(merged)  # type: ignore[assignment]
    except FileNotFoundError as error:
        raise missing_config(Path(path).parent) from error
    except ConfigKeyError as error:
        raise ConfigError(
            f"{path}: {error_chain(error)}\n  this version does not know it: take the line out, or "
            "go on with the version that wrote it"
        ) from error
    except (OSError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: {error_chain(error)}") from error
    except (YAMLError, UnicodeDecodeError) as error:
        back = way_back(Path(path).parent)
        raise ConfigError(f"{path} is no YAML ({_first_line(error)}); {back}") from error
    return job


def _torn(frozen: object) -> str:
    """What is missing of a configuration that was written whole; empty where nothing is."""
    if not isinstance(frozen, DictConfig) or not frozen:
        return "is empty or holds no configuration"
    if OmegaConf.select(frozen, "cluster.setup") is None:  # the last line of every version's
        return "ends before cluster.setup, as a file that was cut off"
    return ""


def _first_line(error: Exception) -> str:
    """Of YAML's errors: what is wrong, and where."""
    mark = getattr(error, "problem_mark", None)
    where = f", line {mark.line + 1}" if mark is not None else ""
    what = str(getattr(error, "problem", None) or error).partition("\n")[0]
    return f"{what}{where}"


def load_model_config(content: dict[str, Any]) -> ModelConfig:
    """The model group from plain values, as an export writes them. ConfigError."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(ModelConfig), content)
        config: ModelConfig = OmegaConf.to_object(merged)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise ConfigError(error_chain(error)) from error
    return config


def to_yaml(job: TrainJob) -> str:
    """The job as config.yaml holds it."""
    return OmegaConf.to_yaml(OmegaConf.structured(job))


def refuse_another(job: TrainJob, kept: TrainJob) -> None:
    """ConfigError where `job` is not the run that was started, or where `force` is not exact.

    A job that is the run throughout is accepted with the `force` that made it so: a requeued one
    has it, and the checkpoint may be older than what it changed.
    """
    if job == kept:
        return
    known = {*kept.force, *DATA}
    before, now, may_change = _fields(kept), _fields(job), changeable_names(job)
    differing = [name for name in now if before[name] != now[name] and name not in may_change]
    problems = []
    for name in job.force:
        if name not in now:
            like = difflib.get_close_matches(name, now, n=1)
            hint = f"; do you mean {like[0]}?" if like else "; give full names, such as train.lr"
            problems.append(f"force names {name}, which is no field{hint}")
        elif name in may_change:
            problems.append(f"force names {name}, which may change anyway: leave it out")
        elif name not in differing and name not in known:
            problems.append(
                f"force names {name}, which is {now[name]} in the run too: leave it out"
            )
    if problems:
        raise ConfigError("\n  ".join(problems))
    unnamed = [name for name in differing if name not in job.force]
    if unnamed:
        changes = "\n".join(
            f"  - {name}: {before[name]}\n  + {name}: {now[name]}" for name in unnamed
        )
        raise ConfigError(
            f"run_dir = {job.run_dir}: holds a run of another configuration (- of the run, + given "
            f"now):\n{changes}\nname another run_dir, or resume with nothing but run_dir=... "
            f"given, or change the run from here on with force=[{','.join(differing)}]"
        )


def _fields(job: TrainJob) -> dict[str, str]:
    """Every value under its full name, as YAML writes it; a list is one value."""
    fields: dict[str, str] = {}

    def add(prefix: str, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, dict):
                add(f"{prefix}{name}.", value)
            else:
                fields[prefix + name] = json.dumps(value)

    plain = OmegaConf.to_container(OmegaConf.structured(job), enum_to_str=True)
    add("", plain)  # type: ignore[arg-type]
    return fields


def job_of_arguments(
    overrides: list[str], kept: Callable[[Path], Path | None] = config_of_run
) -> TrainJob:
    """The job that a command line means.

    `run_dir=X`, where X is an earlier run, means that run with the single values that are given
    beside it (`cluster.nodes=4`); `kept` finds the file that says what run it is. Anything else is
    composed. ConfigError.
    """
    values = _single_values(_for_hydra(overrides))
    if "run_dir" not in values:
        return load_job(overrides)
    run_dir = Path(str(values["run_dir"]))
    step, path = checkpoint_step(run_dir), kept(run_dir)
    # nobody who begins a run leaves out its data
    begins = not values.keys().isdisjoint(DATA)
    if path is not None and (step is not None or not begins):
        return _earlier_run(path, values)
    if path is None and step is not None:
        raise missing_config(run_dir)
    try:
        return load_job(overrides)
    except ConfigError as error:
        if begins:
            raise
        raise ConfigError(
            f"{error}\n  run_dir = {run_dir}: no earlier run is there to go on with"
        ) from error


def _single_values(overrides: list[str]) -> dict[str, Any]:
    """Full name -> value of each override; empty where a word chooses a group of values, such as
    experiment=..., or does not parse."""
    try:
        words = OverridesParser.create().parse_overrides(overrides)
    except HydraException:
        return {}  # composing says what is wrong
    if not all(
        word.type is OverrideType.CHANGE
        and not word.is_sweep_override()
        and ("." in word.key_or_group or word.key_or_group in ("run_dir", "force"))
        for word in words
    ):
        return {}
    return {word.key_or_group: word.value() for word in words}


def _earlier_run(path: Path, values: dict[str, Any]) -> TrainJob:
    kept = load_frozen(path)
    kept.force = []  # named what an earlier resumption changed
    merged = OmegaConf.structured(kept)
    try:
        for name, value in values.items():
            OmegaConf.update(merged, name, value)
        job: TrainJob = OmegaConf.to_object(merged)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise ConfigError(f"the configuration does not compose: {error_chain(error)}") from error
    problems = validate(job)
    if problems:
        raise ConfigError(f"the run in {job.run_dir} cannot go on:\n  " + "\n  ".join(problems))
    return job
