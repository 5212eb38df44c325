"""Batches in the making: threads fill them ahead of the consumer, who takes them in order."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
import xxhash

from pipeline.config import DataConfig
from pipeline.data.batch import Batch, BatchWork
from pipeline.data.device import DeviceMover, Moving
from pipeline.data.faults import FaultLog, LoaderError
from pipeline.data.tokenizer import Tokenizer
from pipeline.data.workers import WorkerPool

# Eight samples are 5 ms of work: beside it the queue costs nothing, and a batch is shared evenly.
_SAMPLES_PER_TASK = 8
# Storage that gives not one sample for this long is taken for dead.
STALL_TIMEOUT_S = 300.0
POLL_S = 0.5

LoaderT = TypeVar("LoaderT", bound="Loader")


@dataclass(frozen=True, kw_only=True)
class RankShare:
    """What one rank makes of each global batch. LoaderError for sizes that do not fit."""

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


class Loader(ABC):
    """Endless batches of one rank; `close()`, or `with`, ends its threads."""

    num_samples: int
    """Of an epoch; 0 where there are no epochs."""
    fingerprint: str
    """Of the samples and of what they are drawn by; a run goes on only with an equal one."""

    def __init__(self, config: DataConfig, share: RankShare) -> None:
        """Raises LoaderError for sizes that do not fit."""
        if config.num_workers < 1 or config.prefetch_batches < 1:
            raise LoaderError(
                f"data.num_workers ({config.num_workers}) and data.prefetch_batches "
                f"({config.prefetch_batches}) must be at least 1"
            )
        self.faults = FaultLog(config.max_bad_fraction)
        self._share = share
        self._prefetch_batches = config.prefetch_batches
        self._tokenizer = Tokenizer(share.context_length)
        self._pin = torch.cuda.is_available()
        self._pool = WorkerPool(config.num_workers, "loader")

    @abstractmethod
    def batches(self, samples_seen: int, device: torch.device | None = None) -> Iterator[Batch]:
        """Batches from position `samples_seen` of the run on, for ever.

        On a CUDA device where one is given: each is copied there beside the computation that is
        queued when it is finished. Raises ValueError if `samples_seen` is not a multiple of the
        global batch size; while iterating, LoaderError when too many samples are bad, when storage
        stalls or after close().
        """

    @abstractmethod
    def _samples(self, position: int) -> list[int]:
        """What fills this rank's share of the global batch that begins at `position`."""

    @abstractmethod
    def _load(self, work: BatchWork, slot: int) -> tuple[str, str]:
        """Runs in a thread: pixels of a slot into work.pixels[slot]; returns (key, caption)."""

    def close(self) -> None:
        """End the threads and close the files; whoever waits for a batch gets a LoaderError."""
        self._pool.close()

    def __enter__(self: LoaderT) -> LoaderT:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _iterate(self, position: int, device: torch.device | None) -> Iterator[Batch]:
        mover = DeviceMover(device or torch.device("cpu"))
        ahead: deque[BatchWork] = deque()
        try:
            following = None
            while True:
                while len(ahead) <= self._prefetch_batches:
                    ahead.append(self._start(position))
                    position += self._share.global_batch_size
                work, moving = following or self._moving(ahead.popleft(), mover)
                self.faults.record(
                    len(work.samples), [work.faults[slot] for slot in sorted(work.faults)]
                )
                # One that is decoded already is copied while the consumer works on this one. One
                # that is not is waited for only when it is asked for.
                ready = mover.moves and ahead[0].wait(0) and ahead[0].error is None
                following = self._moving(ahead.popleft(), mover) if ready else None
                yield mover.finish(moving)
        finally:
            for work in ahead:
                work.cancelled = True

    def _moving(self, work: BatchWork, mover: DeviceMover) -> tuple[BatchWork, Moving]:
        self._wait(work)
        return work, mover.start(work.take())

    def _start(self, samples_seen: int) -> BatchWork:
        """Hand this rank's share of a global batch to the threads."""
        work = BatchWork(
            samples_seen + self._share.first_lane,
            self._samples(samples_seen),
            image_size=self._share.image_size,
            context_length=self._tokenizer.context_length,
            pin=self._pin,
        )
        for first in range(0, self._share.batch_size, _SAMPLES_PER_TASK):
            slots = range(first, min(first + _SAMPLES_PER_TASK, self._share.batch_size))
            self._pool.submit(partial(self._fill, work, slots))
        return work

    def _wait(self, work: BatchWork) -> None:
        num_pending, since = work.num_pending, time.monotonic()
        while not work.wait(POLL_S):
            if self._pool.closed:
                raise LoaderError("the loader is closed")
            if work.num_pending != num_pending:
                num_pending, since = work.num_pending, time.monotonic()
            elif time.monotonic() - since > STALL_TIMEOUT_S:
                raise LoaderError(
                    f"not one sample was read for {STALL_TIMEOUT_S:.0f} s ({num_pending} are "
                    f"outstanding from position {work.first_position} on): does the storage answer?"
                )

    def _fill(self, work: BatchWork, slots: range) -> None:
        """Runs in a thread: read, decode and tokenize some slots of a batch."""
        try:
            captions = []
            for slot in slots:
                if work.cancelled or self._pool.closed:
                    return
                work.keys[slot], caption = self._load(work, slot)
                work.caption_ids[slot] = xxhash.xxh64_intdigest(caption.lower().encode())
                captions.append(caption)
            work.tokens[slots.start : slots.stop] = self._tokenizer.encode_cleaned(captions)
            work.done(len(slots))
        except BaseException as error:  # noqa: B036 - raised again in the consumer, by `take`
            work.fail(error)
