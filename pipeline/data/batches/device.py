"""Copies batches to the device, on a separate stream, while the step before them computes."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import NamedTuple

import torch

from pipeline.data.batches.batch import Batch


class Moving(NamedTuple):
    """A batch whose copy has begun."""

    batch: Batch
    copied: torch.cuda.Event | None


class DeviceMover:
    """`start` begins a copy; `finish` makes the device, not the host, wait for it. The copy
    overlaps with computation only if the batch is pinned. On a CPU nothing is copied.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._copying: deque[tuple[torch.cuda.Event, Batch]] = deque()

    @property
    def moves(self) -> bool:
        return self._stream is not None

    def start(self, batch: Batch) -> Moving:
        if self._stream is None:
            return Moving(batch, None)
        with torch.cuda.stream(self._stream):
            moved = replace(
                batch,
                images=batch.images.to(self._device, non_blocking=True),
                tokens=batch.tokens.to(self._device, non_blocking=True),
                caption_ids=batch.caption_ids.to(self._device, non_blocking=True),
            )
            copied = torch.cuda.Event()
            copied.record(self._stream)
        # Keep each host batch until its copy is done: workers refill its buffer as soon as nothing
        # refers to it.
        while self._copying and self._copying[0][0].query():
            self._copying.popleft()
        self._copying.append((copied, batch))
        return Moving(moved, copied)

    def finish(self, moving: Moving) -> Batch:
        """The batch, ready for what is queued on the device's current stream from now on."""
        batch, copied = moving
        if copied is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(copied)
            for tensor in (batch.images, batch.tokens, batch.caption_ids):
                # The tensor was allocated on the copy stream: without this the allocator could
                # reuse its memory while the current stream still reads it.
                tensor.record_stream(current)
        return batch

    def close(self) -> None:
        """Wait for the copies that have begun."""
        while self._copying:
            self._copying.popleft()[0].synchronize()
