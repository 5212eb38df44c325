"""Compose a training job with Hydra, and read it back through the schema on every rank."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from data_tools.ground.conf_dir import conf_dir
from data_tools.ground.errors import error_chain
from data_tools.ground.fields import changeable_names, fixed_names
from data_tools.ground.override_values import wrong_fields, wrong_values
from data_tools.ground.overrides import Configuration
from pipeline.config.run_files import (
    checkpoint_step,
    config_of_run,
    missing_config,
    no_run_in,
    way_back,
)
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
"""Fields that name the data. What lies behind them may change while the words stay, so force may
always name them."""

ConfigStore.instance().store(name="train_schema", node=TrainJob)

CONFIGURATION = Configuration(TrainJob, CONF_DIR, "train")
"""What the words of a command line may set."""


def load_job(overrides: list[str]) -> TrainJob:
    """Compose conf/train.yaml with Hydra overrides (`experiment=demo train.steps=200`); ConfigError
    lists every problem."""
    words = _for_hydra(overrides)
    wrong = wrong_values(CONFIGURATION, words)
    try:
        job = _job_of(_compose([word for word in words if word not in wrong]))
    except ConfigError as error:
        raise ConfigError("\n  ".join([str(error), *wrong.values()])) from error
    unread = [word.partition("=")[0] for word in wrong]
    problems = [*wrong.values(), *_without(validate(job, _kept(job.run_dir)), unread)]
    if problems:
        raise ConfigError("the training job is not valid:\n  " + "\n  ".join(problems))
    return job


def load_cluster(overrides: list[str]) -> ClusterConfig:
    """Only the cluster group of what the overrides compose to; nothing is validated. ConfigError
    where they do not compose."""
    words = _for_hydra(overrides)
    wrong = wrong_values(CONFIGURATION, words)
    if wrong:
        raise ConfigError("\n  ".join(["the configuration does not compose:", *wrong.values()]))
    return _job_of(_compose(words)).cluster


def _job_of(composed: DictConfig) -> TrainJob:
    try:
        job: TrainJob = OmegaConf.to_object(composed)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise ConfigError(f"the configuration does not compose: {error_chain(error)}") from error
    return job


def _without(problems: list[str], names: Iterable[str]) -> list[str]:
    """Those problems that begin with none of the names."""
    return [problem for problem in problems if re.split("[ :]", problem)[0] not in names]


def _compose(words: list[str]) -> DictConfig:
    """A group that a word chooses is what it is without the experiment beside it: the experiment's
    values lie over the files of all groups, and the command line wins over the experiment."""
    composed = _composed(words)
    names = {word: word.partition("=")[0] for word in words}
    of_fields = {field.name for field in fields(TrainJob)}
    chosen = {name for name in names.values() if name in CONFIGURATION.groups and name in of_fields}
    over_groups = set(CONFIGURATION.groups) - of_fields
    if chosen and over_groups & set(names.values()):
        alone = _composed([word for word in words if names[word] not in over_groups])
        for name in chosen:
            composed[name] = alone[name]
    return composed


def _composed(words: list[str]) -> DictConfig:
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            return compose("train", words)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
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
        _three_channels(frozen)
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


def _three_channels(frozen: DictConfig | ListConfig) -> None:
    """A mean or deviation of one value was taken for all three channels once."""
    for name in ("model.image_mean", "model.image_std"):
        values = OmegaConf.select(frozen, name)
        if isinstance(values, ListConfig) and len(values) == 1:
            OmegaConf.update(frozen, name, list(values) * 3)


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
    cannot = _cannot_change(job, kept)
    problems = _wrong_force(job.force, now, differing, known, may_change, cannot)
    if problems:
        raise ConfigError("\n  ".join(problems))
    unnamed = [name for name in differing if name not in job.force]
    if not unnamed:
        return
    changes = "\n".join(f"  - {name}: {before[name]}\n  + {name}: {now[name]}" for name in unnamed)
    never = [name for name in unnamed if name in cannot]
    fix = "name another run_dir, or resume with nothing but run_dir=... given"
    if never:
        fix += "".join(
            f"; {name} stays {before[name]} in this run: {cannot[name]}" for name in never
        )
    else:
        fix += f", or change the run from here on with force=[{','.join(differing)}]"
    raise ConfigError(
        f"run_dir = {job.run_dir}: holds a run of another configuration (- of the run, + given "
        f"now):\n{changes}\n{fix}"
    )


def _cannot_change(job: TrainJob, kept: TrainJob) -> dict[str, str]:
    """Full name -> reason of each field that cannot be forced to what `job` has."""
    cannot = fixed_names(job)
    for tower in ("image", "text"):
        name = f"{tower}_lr_scale"
        if getattr(kept.train, name) == 0 < getattr(job.train, name):
            cannot[f"train.{name}"] = "its checkpoints have no moments of the tower, it was frozen"
    return cannot


def _wrong_force(
    force: list[str],
    now: Mapping[str, str],
    differing: list[str],
    known: set[str],
    may_change: set[str],
    cannot: Mapping[str, str],
) -> list[str]:
    problems = []
    for name in force:
        if name not in now:
            like = difflib.get_close_matches(name, now, n=1)
            hint = f"; do you mean {like[0]}?" if like else "; give full names, such as train.lr"
            problems.append(f"force names {name}, which is no field{hint}")
        elif name in may_change:
            problems.append(f"force names {name}, which may change anyway: leave it out")
        elif name in differing and name in cannot:
            problems.append(
                f"force names {name}, which cannot change in a run: {cannot[name]}; leave it out "
                "in both places, or name another run_dir"
            )
        elif name not in differing and name not in known:
            problems.append(
                f"force names {name}, which is {now[name]} in the run too: leave it out"
            )
    return problems


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

    `run_dir=X`, where X is an earlier run, means that run with what is given beside it: single
    values (`cluster.nodes=4`), and groups that a run may change (`cluster=one_node`); `kept` finds
    the file that says what run it is. Anything else is composed. ConfigError.
    """
    values = _single_values(_for_hydra(overrides))
    if "run_dir" not in values:
        return load_job(overrides)
    run_dir = Path(str(values["run_dir"]))
    step, path = checkpoint_step(run_dir), kept(run_dir)
    # nobody who begins a run leaves out its data
    begins = not values.keys().isdisjoint(DATA)
    if path is not None and (step is not None or not begins):
        return _going_on(path, values)
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


def _going_on(path: Path, values: dict[str, Any]) -> TrainJob:
    wrong = wrong_fields(CONFIGURATION, values)
    job = _earlier_run(path, {name: values[name] for name in values if name not in wrong})
    problems = [*wrong.values(), *_without(validate(job, _kept(job.run_dir)), wrong)]
    if problems:
        raise ConfigError(f"the run in {job.run_dir} cannot go on:\n  " + "\n  ".join(problems))
    return job


def _kept(run_dir: str) -> TrainJob | None:
    """The run that is in a folder, if it has come as far as a checkpoint."""
    path = Path(run_dir, "config.yaml")
    return load_frozen(path) if checkpoint_step(Path(run_dir)) and path.exists() else None


def _single_values(overrides: list[str]) -> dict[str, Any]:
    """Full name -> value of each override, groups that a run may change among them, first; empty
    where a word chooses another group, such as experiment=..., or does not parse."""
    try:
        words = OverridesParser.create().parse_overrides(overrides)
    except HydraException:
        return {}  # composing says what is wrong
    may_change = changeable_names(TrainJob())
    groups, values = {}, {}
    for word in words:
        name = word.key_or_group
        if word.type is not OverrideType.CHANGE or word.is_sweep_override():
            return {}
        if "." in name or name in ("run_dir", "force"):
            values[name] = word.value()
        elif any(field.startswith(f"{name}.") for field in may_change):
            groups[name] = _composed([f"{name}={word.value()}"])[name]
        else:
            return {}
    return groups | values


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
    return job


MODEL_FIELDS = ("model.", "loss.max_logit_scale")
"""What the weights of a run belong to."""


def run_to_evaluate(overrides: list[str]) -> tuple[TrainJob, list[str]]:
    """The earlier run that a command line means, with the values given beside run_dir, and the full
    names of these; none where the words choose groups, such as experiment=demo.

    Nothing is validated, and nothing is written. ConfigError where there is no run, or where the
    words describe another model.
    """
    words = _for_hydra(overrides)
    values = _single_values(words)
    composed = None if "run_dir" in values else _job_of(_compose(words))
    run_dir = Path(composed.run_dir if composed else str(values["run_dir"]))
    problem = no_run_in(run_dir, given=bool(composed is None or composed.run_dir))
    if problem:
        raise ConfigError(problem)
    path = run_dir / "config.yaml"
    kept = load_frozen(path)
    job = composed or _earlier_run(path, values)
    job.eval.datasets = job.eval.datasets or (kept.eval.datasets if composed else [])
    before, now = _fields(kept), _fields(job)
    others = [
        f"{name} = {now[name]}: the weights are of a model with {before[name]}; leave it out"
        for name in now
        if name.startswith(MODEL_FIELDS) and now[name] != before[name]
    ]
    if others:
        raise ConfigError(f"run_dir = {run_dir}: holds another model\n  " + "\n  ".join(others))
    return job, [name for name in values if name != "run_dir"]
