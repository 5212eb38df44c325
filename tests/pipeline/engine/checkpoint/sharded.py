"""An engine that only owns fragments: parameters with known values, cut as ZeRO's stages cut
them."""

from __future__ import annotations

import math
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.config import TrainJob
from pipeline.distributed.world import World
from pipeline.engine.checkpoint import CheckpointManager
from pipeline.engine.checkpoint.folder import CheckpointFolder
from pipeline.engine.checkpoint.record import Record, describe, tensors_name
from pipeline.engine.checkpoint.snapshot import Snapshot
from pipeline.engine.checkpoint.tensors import write_blocks
from pipeline.engine.shards import Fragment
from pipeline.state import TrainState

SHAPES = {"logit_scale": (1,), "text.embedding": (11, 6), "visual.proj": (7, 5), "visual.ln": (5,)}
KINDS = ("weight", "exp_avg", "exp_avg_sq")


def expected(name: str, kind: str, version: int, shape: tuple[int, ...]) -> Tensor:
    """(numel,) Different for all names, kinds and versions, and not exact in 16 bits."""
    generator = torch.Generator().manual_seed(
        version * 1000 + list(SHAPES).index(name) * 10 + len(kind)
    )
    return torch.randn(math.prod(shape), generator=generator)


def cut(stage: int, rank: int, world_size: int) -> list[tuple[str, int, int]]:
    """(name, start, length) of what a rank owns."""
    found = []
    if stage == 3:
        for name, shape in SHAPES.items():
            part = -(-math.prod(shape) // world_size)
            length = min(part, math.prod(shape) - rank * part)
            if length > 0:
                found.append((name, rank * part, length))
        return found
    part = -(-sum(math.prod(shape) for shape in SHAPES.values()) // world_size)
    begin, place = rank * part, 0
    for name, shape in SHAPES.items():
        first = max(begin, place)
        last = min(begin + part, place + math.prod(shape))
        if first < last:
            found.append((name, first - place, last - first))
        place += math.prod(shape)
    return found


class Shards:
    def __init__(
        self, stage: int, rank: int, world_size: int, kinds: tuple[str, ...] = KINDS
    ) -> None:
        self.optimizer_step, self.num_published = 0, 0
        self._fragments = [
            Fragment(name, SHAPES[name], start, {kind: torch.zeros(length) for kind in kinds})
            for name, start, length in cut(stage, rank, world_size)
        ]

    def fragments(self) -> list[Fragment]:
        return self._fragments

    def publish(self) -> None:
        dist.barrier()
        self.num_published += 1


class Engine:
    """`fill` stands for training, `holds` says whether all values are those of a version."""

    def __init__(
        self, stage: int = 1, rank: int = 0, world_size: int = 1, kinds: tuple[str, ...] = KINDS
    ) -> None:
        self.shards = Shards(stage, rank, world_size, kinds)
        self.extra: dict[str, float | int | bool] = {"loss_scale": 0.1}

    def fill(self, version: int) -> Engine:
        self.shards.optimizer_step = version
        self.extra = {"loss_scale": 0.1 * version}
        for fragment in self.shards.fragments():
            for kind, values in fragment.values.items():
                values.copy_(self._expected(fragment, kind, version))
        return self

    def holds(self, version: int) -> bool:
        return (
            self.shards.optimizer_step == version
            and self.extra == {"loss_scale": 0.1 * version}
            and all(
                torch.equal(values, self._expected(fragment, kind, version))
                for fragment in self.shards.fragments()
                for kind, values in fragment.values.items()
            )
        )

    def extra_state(self) -> dict[str, float | int | bool]:
        return dict(self.extra)

    def load_extra_state(self, state: dict[str, float | int | bool]) -> None:
        self.extra = dict(state)

    @staticmethod
    def _expected(fragment: Fragment, kind: str, version: int) -> Tensor:
        whole = expected(fragment.name, kind, version, fragment.shape)
        length = next(iter(fragment.values.values())).numel()
        return whole[fragment.start : fragment.start + length]


def world_of(rank: int, world_size: int) -> World:
    return World(rank, rank, world_size, torch.device("cpu"), timedelta(seconds=30))


def job(run_dir: Path | str, **checkpoint: Any) -> TrainJob:
    """every_steps=10, log lines every 5 steps."""
    config = TrainJob(run_dir=str(run_dir))
    config.logging.every_steps = 5
    config.checkpoint.every_steps = 10
    for name, value in checkpoint.items():
        setattr(config.checkpoint, name, value)
    return config


def manager(
    run_dir: Path | str,
    rank: int = 0,
    world_size: int = 1,
    data: str = "these shards",
    **checkpoint: Any,
) -> CheckpointManager:
    return CheckpointManager(job(run_dir, **checkpoint), world_of(rank, world_size), data)


def write_checkpoint(
    run_dir: Path, step: int, weights: dict[str, Tensor], average: dict[str, Tensor] | None = None
) -> None:
    """As one rank leaves it, without processes or moments; `average` are the ema weights."""
    folder = CheckpointFolder(run_dir / "checkpoints")
    fragments = []
    for name, value in weights.items():
        values = {"weight": value.detach().flatten()}
        if average is not None:
            values["ema"] = average[name].detach().flatten()
        fragments.append(Fragment(name, tuple(value.shape), 0, values))
    snapshot = Snapshot(torch.device("cpu"))
    snapshot.take(fragments)
    folder.aside(step).mkdir(parents=True)
    file = write_blocks(folder.aside(step) / tensors_name(0), snapshot.blocks())
    pieces, parameters = describe(fragments)
    record = Record(
        **asdict(TrainState(step, 8 * step)),
        run_id="a test",
        data_fingerprint="these shards",
        world_size=1,
        optimizer_step=step,
        extra_state={},
        parameters=parameters,
        files=[file],
        pieces=[pieces],
    )
    folder.commit(step, record.to_text(), record.files)
