"""Prefetch: workers fill batches before the consumer asks for them; it takes them in order."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from typing import Protocol, TypeVar

import torch

from pipeline.config import DataConfig
from pipeline.data.batches.batch import Batch, BatchWork
from pipeline.data.batches.device import DeviceMover, Moving
from pipeline.data.batches.slots import RankShare
from pipeline.data.faults import FaultLog, LoaderError

# If not one sample arrives for this long, the storage is taken for dead.
STALL_TIMEOUT_S = 300.0
POLL_S = 0.5

LoaderT = TypeVar("LoaderT", bound="Loader")


class WorkerPool(Protocol):
    """Workers that fill batches."""

    @property
    def closed(self) -> bool: ...

    def start(self, samples_seen: int) -> BatchWork:
        """Start filling this rank's share of a global batch. Called in the consumer's thread."""

    def close(self) -> None:
        """End the workers; batches that they have started are never finished."""


class Loader(ABC):
    """An endless source of one rank's batches; `close()`, or leaving `with`, ends its workers."""

    num_samples: int
    """Samples per epoch; 0 where there are no epochs."""
    fingerprint: str
    """Identifies the samples and how they are drawn; a run resumes only with an equal one."""
    _pool: WorkerPool

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

    @abstractmethod
    def batches(self, samples_seen: int, device: torch.device | None = None) -> Iterator[Batch]:
        """Batches from position `samples_seen` of the run on, for ever.

        If `device` is a CUDA device, each batch is copied there, while the computation runs that
        is queued at that time. Raises ValueError if `samples_seen` is not a multiple of the
        global batch size; while iterating, LoaderError when too many samples are bad, when storage
        stalls or after close().
        """

    def close(self) -> None:
        """End the workers and close the files; a consumer that waits for a batch gets a
        LoaderError."""
        self._pool.close()

    def __enter__(self: LoaderT) -> LoaderT:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _iterate(self, position: int, device: torch.device | None) -> Iterator[Batch]:
        mover = DeviceMover(device or torch.device("cpu"))
        prefetched: deque[BatchWork] = deque()
        try:
            following = None
            while True:
                while len(prefetched) <= self._prefetch_batches:
                    prefetched.append(self._pool.start(position))
                    position += self._share.global_batch_size
                work, moving = following or self._moving(prefetched.popleft(), mover)
                self.faults.record(
                    self._share.batch_size, [work.faults[slot] for slot in sorted(work.faults)]
                )
                # If the next batch is decoded already, start its copy while the consumer works on
                # this one. If it is not, wait for it only when the consumer asks.
                ready = mover.moves and prefetched[0].wait(0) and prefetched[0].error is None
                following = self._moving(prefetched.popleft(), mover) if ready else None
                yield mover.finish(moving)
        finally:
            for work in prefetched:
                work.cancelled = True
            mover.close()

    def _moving(self, work: BatchWork, mover: DeviceMover) -> tuple[BatchWork, Moving]:
        self._wait(work)
        return work, mover.start(work.take())

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
