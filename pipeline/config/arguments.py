"""What a command line means: a job of its own, or an earlier run and what is given beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data_tools.ground.errors import error_chain
from data_tools.ground.fields import changeable_names
from data_tools.ground.override_values import wrong_fields
from pipeline.config.changes import DATA
from pipeline.config.composition import (
    CONFIGURATION,
    begun_run,
    for_hydra,
    hydra_compose,
    load_job,
    without,
)
from pipeline.config.frozen import load_frozen
from pipeline.config.run_files import checkpoint_step, config_of_run, missing_config
from pipeline.config.schema import ConfigError, TrainJob
from pipeline.config.validation import validate


def job_of_arguments(
    overrides: list[str], kept: Callable[[Path], Path | None] = config_of_run
) -> TrainJob:
    """The job that a command line means.

    `run_dir=X`, where X is an earlier run, means that run with what is given beside it: single
    values (`cluster.nodes=4`), and groups that a run may change (`cluster=one_node`); `kept` finds
    the file that says what run it is. Anything else is composed. ConfigError.
    """
    values = single_values(for_hydra(overrides))
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
    job = earlier_run(path, {name: values[name] for name in values if name not in wrong})
    problems = [*wrong.values(), *without(validate(job, begun_run(job.run_dir)), wrong)]
    if problems:
        raise ConfigError(f"the run in {job.run_dir} cannot go on:\n  " + "\n  ".join(problems))
    return job


def single_values(overrides: list[str]) -> dict[str, Any]:
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
            groups[name] = hydra_compose([f"{name}={word.value()}"])[name]
        else:
            return {}
    return groups | values


def earlier_run(path: Path, values: dict[str, Any]) -> TrainJob:
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
