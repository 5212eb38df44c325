"""Steps of a run that computes nothing, for tests of what is told of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from pipeline.config import TrainJob, WandbMode
from pipeline.device_timer import DeviceTimer
from pipeline.distributed.world import World
from pipeline.metrics import MetricsProcessor
from pipeline.state import StepMetrics, TrainState

GLOBAL_BATCH = 8


class FixedTimer(DeviceTimer):
    """A timer of known seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__(torch.device("cpu"))
        self._marks = [0.0, seconds]


def world(rank: int = 0, world_size: int = 1) -> World:
    return World(rank, rank, world_size, torch.device("cpu"))


def job(run_dir: Path, **logging: Any) -> TrainJob:
    config = TrainJob(run_dir=str(run_dir))
    config.train.steps = 1000
    config.train.global_batch_size = GLOBAL_BATCH
    config.train.warmup_steps = 0
    config.logging.wandb_mode = WandbMode.disabled
    for name, value in logging.items():
        setattr(config.logging, name, value)
    return config


def step_metrics(loss: float = 2.0, **given: Any) -> StepMetrics:
    """given: fields of StepMetrics as plain numbers; the rest are those of a healthy step."""
    return StepMetrics(
        loss=torch.tensor(loss),
        logit_scale=torch.tensor([given.get("logit_scale", 2.7)]),
        grad_norms=torch.tensor(given.get("grad_norms", [3.0, 4.0, 5.0])),
        skipped=torch.tensor(float(given.get("skipped", False))),
        lr=given.get("lr", 1e-3),
        top1=torch.tensor(given["top1"]) if "top1" in given else None,
        mean_cosines=torch.tensor(given["mean_cosines"]) if "mean_cosines" in given else None,
        caption_ids=torch.tensor(given.get("caption_ids", range(GLOBAL_BATCH))),
        towers=FixedTimer(given.get("towers_s", 0.25)),
    )


def take(
    metrics: MetricsProcessor,
    state: TrainState,
    step: StepMetrics | None = None,
    keys: list[str] | None = None,
    num_replaced: int = 0,
) -> None:
    """One turn of the training loop; sample i of the data order has key "i"."""
    first = state.samples_seen
    state.advance(GLOBAL_BATCH)
    metrics.record_step(
        keys if keys is not None else [str(first + i) for i in range(GLOBAL_BATCH)],
        step or step_metrics(),
        waited_s=0.5,
        num_replaced=num_replaced,
        flops_per_sample=1e9,
        state=state,
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
