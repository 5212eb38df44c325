"""A live ClipEngine in gloo processes on batches made from (seed, step), for the tests of this
folder; and the same training in plain torch, one process, float32, nothing of DeepSpeed."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from pipeline.config import TrainJob
from pipeline.config.composition import load_job
from pipeline.data import Batch
from pipeline.distributed.world import World
from pipeline.model import CLIP, initial_clip
from tests.pipeline.model.model_configs import random_images, random_tokens

GLOBAL_BATCH_SIZE = 16
STEPS = 4


def job(*overrides: str, world_size: int = 1) -> TrainJob:
    return load_job(
        [
            "experiment=tiny",
            "run_dir=unused",
            "data.stream=[pipe:true]",
            f"train.steps={STEPS}",
            "train.warmup_steps=1",
            # Adam divides a gradient by its own size: with a small eps it would turn rounding of
            # gradients that are nearly nothing into whole updates
            "train.eps=1e-3",
            f"train.global_batch_size={GLOBAL_BATCH_SIZE}",
            f"cluster.ranks_per_node={world_size}",
            *overrides,
        ]
    )


def model_of(config: TrainJob) -> CLIP:
    torch.manual_seed(config.train.seed)
    model = initial_clip(config)
    with torch.no_grad():  # zeros and ones would hide a parameter that is forgotten
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or ".ln_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def batch_of(step: int, rank: int = 0, world_size: int = 1) -> Batch:
    """Rank's rows of the global batch of a step; two captions of each batch are equal."""
    lengths = [5 + (7 * row + step) % 10 for row in range(GLOBAL_BATCH_SIZE)]
    images = random_images(GLOBAL_BATCH_SIZE, 32, seed=step)
    tokens = random_tokens(lengths, 16, seed=step)
    tokens[1] = tokens[0]
    ids = torch.arange(GLOBAL_BATCH_SIZE)
    ids[1] = ids[0]
    mine = slice(
        rank * GLOBAL_BATCH_SIZE // world_size, (rank + 1) * GLOBAL_BATCH_SIZE // world_size
    )
    keys = [f"{step}-{row}" for row in range(GLOBAL_BATCH_SIZE)][mine]
    return Batch(images[mine], tokens[mine], ids[mine], keys, 0)


def world_of(rank: int, world_size: int) -> World:
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29500")  # DeepSpeed wants to see one; it joins ours
    return World(rank, rank, world_size, torch.device("cpu"))


def engine_of(rank: int, world_size: int, overrides: list[str]) -> Any:
    """(engine, config)"""
    from pipeline.engine.engine import ClipEngine

    config = job(*overrides, world_size=world_size)
    return ClipEngine(model_of(config), config, world_of(rank, world_size)), config


def train(rank: int, world_size: int, overrides: list[str]) -> dict[str, Any]:
    """Losses of the rank, norms and final masters of STEPS steps."""
    engine, _ = engine_of(rank, world_size, overrides)
    steps = [engine.train_step(batch_of(step, rank, world_size), step) for step in range(STEPS)]
    result = {
        "losses": [float(step.loss) for step in steps],
        "norms": torch.stack([step.grad_norms for step in steps]),
        "skipped": [float(step.skipped) for step in steps],
        "scales": [float(step.logit_scale) for step in steps],
        "fragments": pieces(engine.shards),
        "optimizer_step": engine.shards.optimizer_step,
    }
    engine.close()
    return result


def train_each(rank: int, world_size: int, jobs: list[list[str]]) -> list[dict[str, Any]]:
    """`train` of several jobs in the same processes: their start costs more than the steps."""
    return [train(rank, world_size, overrides) for overrides in jobs]


def pieces(shards: Any) -> list[tuple[str, tuple[int, ...], int, dict[str, Tensor]]]:
    return [
        (part.name, part.shape, part.start, {k: v.clone() for k, v in part.values.items()})
        for part in shards.fragments()
    ]


def whole(results: list[list[tuple]], key: str = "weight") -> dict[str, Tensor]:
    """Full parameters (or moments) of all ranks' pieces; every element must be there once."""
    flats: dict[str, Tensor] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for rank_pieces in results:
        for name, shape, start, values in rank_pieces:
            if key not in values:
                continue
            flat = flats.setdefault(name, torch.full((torch.Size(shape).numel(),), float("nan")))
            part = flat[start : start + len(values[key])]
            assert len(part) == len(values[key]) and part.isnan().all(), f"{name} owned twice"
            part.copy_(values[key])
            shapes[name] = shape
    assert not any(flat.isnan().any() for flat in flats.values())
    return {name: flat.reshape(shapes[name]) for name, flat in flats.items()}
