"""Batch buffers in shared memory, each used again once nothing refers to its last batch."""

from __future__ import annotations

import mmap
import os
import weakref
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from pipeline.data.batches.shared_memory import BatchLayout, create_memory
from pipeline.data.batches.slots import BatchArrays
from pipeline.data.faults import LoaderError

# The memory is page-locked for every CUDA context of the process.
_CUDA_HOST_REGISTER_PORTABLE = 1


class _Buffer(NamedTuple):
    number: int
    arrays: BatchArrays


class Lease(NamedTuple):
    """A buffer for one batch."""

    number: int
    arrays: BatchArrays
    images: torch.Tensor
    """The pixels. The buffer goes back when no tensor has this memory any more."""


class BatchRing:
    """As many buffers as there are batches in the making, ahead and with the consumer.

    The contract of reuse is the tensor's own: the pixels of a lease are wrapped in one array that
    the tensor's storage owns; when the storage is freed, and so no batch, view or slice of it is
    left, the array dies and the buffer is free. So a batch that is kept stays as it was, and costs
    a further buffer. Whoever copies to a device asynchronously keeps the tensor until the copy is
    done (DeviceMover). Freed buffers are kept for the next batches, as torch keeps pinned memory.
    """

    def __init__(
        self,
        layout: BatchLayout,
        announce: Callable[[int, int], None] | None = None,
        *,
        page_locked: bool,
    ) -> None:
        """`announce(number, descriptor)` hands a new buffer to other processes."""
        self._layout = layout
        self._announce = announce
        self._page_locked = page_locked
        self._free: deque[_Buffer] = deque()
        self._closed = False
        self.num_buffers = 0

    def lease(self) -> Lease:
        """To be called in the consumer's thread: page-locking takes its CUDA device."""
        try:
            # The last one that came back: its pages are the likeliest to be in a cache.
            buffer = self._free.pop()
        except IndexError:
            buffer = self._new_buffer()
        pixels = buffer.arrays.pixels.view()
        weakref.finalize(pixels, self._give_back, buffer).atexit = False
        return Lease(buffer.number, buffer.arrays, torch.from_numpy(pixels))

    def close(self) -> None:
        """Give up the memory: that of batches in use when the last of each is gone."""
        self._closed = True
        self._free.clear()

    def _give_back(self, buffer: _Buffer) -> None:
        if not self._closed:
            self._free.append(buffer)

    def _new_buffer(self) -> _Buffer:
        descriptor = create_memory(self._layout.num_bytes)
        try:
            memory = mmap.mmap(descriptor, self._layout.num_bytes)
            if self._announce is not None:
                self._announce(self.num_buffers, descriptor)
        finally:
            os.close(descriptor)
        arrays = self._layout.arrays(memory)
        if self._page_locked:
            page_lock(arrays.pixels)
        self.num_buffers += 1
        return _Buffer(self.num_buffers - 1, arrays)


def page_lock(pixels: np.ndarray) -> None:
    """Let CUDA copy from this memory beside computation. LoaderError if it will not."""
    cuda = torch.cuda.cudart()
    failure = int(
        cuda.cudaHostRegister(pixels.ctypes.data, pixels.nbytes, _CUDA_HOST_REGISTER_PORTABLE)
    )
    if failure:
        raise LoaderError(
            f"CUDA cannot page-lock {pixels.nbytes:,} bytes for a batch (cudaHostRegister: error "
            f"{failure}): lower data.prefetch_batches, or raise the limit of locked memory "
            f"(ulimit -l) if there is one"
        )
    # Every view of the mapping refers to `base`, so that dies last and before it is unmapped.
    weakref.finalize(pixels.base, cuda.cudaHostUnregister, pixels.ctypes.data).atexit = False
