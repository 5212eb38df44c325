"""The commands that start ranks, as their --help describes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data_tools.ground.settings import Command, NoSettings
from pipeline.config import ConfigError
from pipeline.config.composition import CONFIGURATION

TRAIN = Command(
    name="pipeline.train",
    purpose="Train a CLIP model: compose the configuration and start the ranks of this machine; "
    "once they can train it is run_dir/config.yaml. run_dir=DIR of an earlier run goes on with "
    "that run.",
    settings=NoSettings,
    example="experiment=vit_b_32 data.manifest=data/mine/manifest.json run_dir=runs/mine",
    configuration=CONFIGURATION,
    refused_by=(ConfigError,),
)


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    step: int | None = None
    """The step of the checkpoint; null is the newest."""
    ema: bool | None = None
    """true scores the average of the weights (train.ema_decay), false the weights; null is the
    average where the run has one."""


def check_step(given: Mapping[str, Any]) -> list[str]:
    if (given.get("step") or 0) < 0:
        return [f"step={given['step']}: give the number of a checkpoint's step, 0 or more"]
    return []


EVALUATE = Command(
    name="pipeline.evaluate",
    purpose="Score a checkpoint of a run on evaluation sets (zero-shot classification and "
    "retrieval) and add the scores to eval/step_N.json and report.html below run_dir. Takes the "
    "run's own configuration; eval.*, cluster.* and train.threads_per_rank may be given, for this "
    "evaluation only.",
    settings=EvaluateSettings,
    example="run_dir=runs/mine step=1000",
    check=check_step,
    configuration=CONFIGURATION,
    refused_by=(ConfigError,),
)
