"""Loaders of small data sets, and their batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipeline.config import DataConfig
from pipeline.data import Batch, build_train_loader
from pipeline.data.batches.prefetch import Loader
from pipeline.data.loader import TrainLoader

IMAGE_SIZE = 16
CONTEXT_LENGTH = 24


def small_loader(
    config: DataConfig,
    global_batch_size: int = 8,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 3,
) -> Loader:
    return build_train_loader(
        config,
        image_size=IMAGE_SIZE,
        context_length=CONTEXT_LENGTH,
        global_batch_size=global_batch_size,
        rank=rank,
        world_size=world_size,
        seed=seed,
    )


def take(loader: Loader, count: int, samples_seen: int = 0) -> list[Batch]:
    """The first batches from a position on; the loader is closed."""
    with loader:
        iterator = loader.batches(samples_seen)
        return [next(iterator) for _ in range(count)]


def loader_of(
    manifest: Path | str,
    global_batch_size: int = 8,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 3,
    **config: Any,
) -> TrainLoader:
    """A loader of IMAGE_SIZE pixels; `config` are fields of DataConfig."""
    data = DataConfig(manifest=str(manifest), **{"prefetch_batches": 2, "num_workers": 1, **config})
    loader = small_loader(data, global_batch_size, rank, world_size, seed)
    assert isinstance(loader, TrainLoader)
    return loader


def read_batches(
    manifest: Path | str, count: int, samples_seen: int = 0, **kwargs: Any
) -> list[Batch]:
    """The first batches from a position on, of a loader made as `loader_of` makes it."""
    return take(loader_of(manifest, **kwargs), count, samples_seen)


def equal(a: Batch, b: Batch) -> bool:
    """Bit for bit."""
    return (
        a.keys == b.keys
        and torch.equal(a.images, b.images)
        and torch.equal(a.tokens, b.tokens)
        and torch.equal(a.caption_ids, b.caption_ids)
        and a.num_bad == b.num_bad
    )
