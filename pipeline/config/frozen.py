"""The configuration of a run as its config.yaml holds it: written, and read back through the
schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from data_tools.ground.errors import error_chain
from pipeline.config.run_files import missing_config, way_back
from pipeline.config.schema import ConfigError, ModelConfig, TrainJob

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
    """What is wrong, and where, from an error of YAML."""
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


def values_by_name(job: TrainJob) -> dict[str, str]:
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
