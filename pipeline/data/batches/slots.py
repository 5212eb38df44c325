"""Filling the slots of a batch, in a thread or a process alike. Worker processes import this, so it
must not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import xxhash

from pipeline.data.faults import LoaderError, SampleError
from pipeline.data.samples.tokenizer import Tokenizer

# Eight samples are 5 ms of work: beside it a queue costs nothing, and a batch is shared evenly.
SAMPLES_PER_TASK = 8


@dataclass(frozen=True, kw_only=True)
class RankShare:
    """The share of each global batch that one rank loads. Raises LoaderError for sizes that do not
    fit."""

    image_size: int
    context_length: int
    global_batch_size: int
    rank: int
    world_size: int

    def __post_init__(self) -> None:
        if self.global_batch_size % self.world_size or not 0 <= self.rank < self.world_size:
            raise LoaderError(
                f"global_batch_size {self.global_batch_size} must be a multiple of world_size "
                f"{self.world_size}, and rank {self.rank} below it"
            )

    @property
    def batch_size(self) -> int:
        return self.global_batch_size // self.world_size

    @property
    def first_lane(self) -> int:
        return self.rank * self.batch_size


class BatchArrays(NamedTuple):
    """The arrays that workers fill: one rank's share of a batch. Element i of each belongs to
    sample i."""

    pixels: np.ndarray
    """uint8 (B, 3, image_size, image_size)."""
    tokens: np.ndarray
    """uint16 (B, context_length)."""
    caption_ids: np.ndarray
    """uint64 (B,)."""


class Loaded(NamedTuple):
    key: str
    caption: str
    """The cleaned caption."""
    fault: SampleError | None
    """What was wrong with the sample of this position, if this one replaces it; else None."""


class Filled(NamedTuple):
    """What a worker reports about slots that it has filled."""

    slots: range
    keys: list[str]
    faults: dict[int, SampleError]
    """Replaced samples, by slot."""


class SampleSource(Protocol):
    """Where samples come from. Safe to call from threads."""

    def samples(self, samples_seen: int, slots: range) -> list[int]:
        """Sample numbers for these slots of the rank's share, in the global batch that begins at
        position `samples_seen`.
        """

    def load(self, sample: int, position: int, out: np.ndarray) -> Loaded:
        """Write the pixels into `out`, uint8 (3, image_size, image_size). Raises LoaderError."""


def fill_slots(
    source: SampleSource,
    tokenizer: Tokenizer,
    arrays: BatchArrays,
    *,
    slots: range,
    samples: list[int],
    first_position: int,
) -> Filled:
    """Read, decode and tokenize `samples` into `slots`; slot i is position first_position + i."""
    filled, captions = Filled(slots, [], {}), []
    for slot, sample in zip(slots, samples):
        loaded = source.load(sample, first_position + slot, arrays.pixels[slot])
        filled.keys.append(loaded.key)
        captions.append(loaded.caption)
        arrays.caption_ids[slot] = xxhash.xxh64_intdigest(loaded.caption.lower().encode())
        if loaded.fault is not None:
            filled.faults[slot] = loaded.fault
    arrays.tokens[slots.start : slots.stop] = tokenizer.encode_cleaned(captions)
    return filled


def task_ranges(slots: range) -> list[range]:
    """Split `slots` into ranges of SAMPLES_PER_TASK; the last may be shorter."""
    return [
        slots[first : first + SAMPLES_PER_TASK] for first in range(0, len(slots), SAMPLES_PER_TASK)
    ]
