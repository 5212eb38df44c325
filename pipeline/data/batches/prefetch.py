"""Batches in the making: workers fill them ahead of the consumer, who takes them in order."""

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

# Storage that gives not one sample for this long is taken for dead.
STALL_TIMEOUT_S = 300.0
POLL_S = 0.5

LoaderT = TypeVar("LoaderT", bound="Loader")


class Crew(Protocol):
    """Workers that fill batches."""

    @property
    def closed(self) -> bool: ...

    def start(self, samples_seen: int) -> BatchWork:
        """Begin this rank's share of a global batch; called in the consumer's thread."""

    def close(self) -> None:
        """End the workers; what they have begun is never finished."""


class Loader(ABC):
    """Endless batches of one rank; `close()`, or `with`, ends its workers."""

    num_samples: int
    """Of an epoch; 0 where there are no epochs."""
    fingerprint: str
    """Of the samples and of what they are drawn by; a run goes on only with an equal one."""
    _crew: Crew

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

        On a CUDA device where one is given: each is copied there beside the computation that is
        queued when it is finished. Raises ValueError if `samples_seen` is not a multiple of the
        global batch size; while iterating, LoaderError when too many samples are bad, when storage
        stalls or after close().
        """

    def close(self) -> None:
        """End the workers and close the files; whoever waits for a batch gets a LoaderError."""
        self._crew.close()

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
                    ahead.append(self._crew.start(position))
                    position += self._share.global_batch_size
                work, moving = following or self._moving(ahead.popleft(), mover)
                self.faults.record(
                    self._share.batch_size, [work.faults[slot] for slot in sorted(work.faults)]
                )
                # One that is decoded already is copied while the consumer works on this one. One
                # that is not is waited for only when it is asked for.
                ready = mover.moves and ahead[0].wait(0) and ahead[0].error is None
                following = self._moving(ahead.popleft(), mover) if ready else None
                yield mover.finish(moving)
        finally:
            for work in ahead:
                work.cancelled = True
            mover.close()

    def _moving(self, work: BatchWork, mover: DeviceMover) -> tuple[BatchWork, Moving]:
        self._wait(work)
        return work, mover.start(work.take())

    def _wait(self, work: BatchWork) -> None:
        num_pending, since = work.num_pending, time.monotonic()
        while not work.wait(POLL_S):
            if self._crew.closed:
                raise LoaderError("the loader is closed")
            if work.num_pending != num_pending:
                num_pending, since = work.num_pending, time.monotonic()
            elif time.monotonic() - since > STALL_TIMEOUT_S:
                raise LoaderError(
                    f"not one sample was read for {STALL_TIMEOUT_S:.0f} s ({num_pending} are "
                    f"outstanding from position {work.first_position} on): does the storage answer?"
                )
