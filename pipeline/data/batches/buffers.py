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


class BatchBuffer(NamedTuple):
    """A buffer while one batch uses it."""

    number: int
    arrays: BatchArrays
    images: torch.Tensor
    """The pixels, uint8 (B, 3, image_size, image_size). The buffer returns to the pool when no
    tensor has this memory any more."""


class BufferPool:
    """Hands out batch buffers and takes each back when no tensor uses its memory any more. It grows
    to the number of batches that are prefetched or held by the consumer, and never shrinks, as
    torch keeps pinned memory.

    There is no explicit release. The tensor's storage owns one numpy array over the buffer's
    pixels; when the storage is freed (no batch, view or slice of it is left), that array dies and
    the buffer is free. So a batch that the consumer keeps stays as it was, and costs one more
    buffer. Code that copies a batch to a device asynchronously must keep the tensor until the copy
    is done (DeviceMover does).
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

    def acquire(self) -> BatchBuffer:
        """A free buffer, or a new one. Call it in the consumer's thread: page-locking uses the CUDA
        device of the calling thread."""
        try:
            # The one that came back last: its pages are the most likely to be in a CPU cache.
            buffer = self._free.pop()
        except IndexError:
            buffer = self._new_buffer()
        # A fresh view for each batch: the finalizer must run when this batch's tensor is gone,
        # while buffer.arrays.pixels lives as long as the pool. atexit=False: at the interpreter's
        # end there is no next batch to hand the buffer to.
        pixels = buffer.arrays.pixels.view()
        weakref.finalize(pixels, self._put_back, buffer).atexit = False
        return BatchBuffer(buffer.number, buffer.arrays, torch.from_numpy(pixels))

    def close(self) -> None:
        """Free the memory; that of batches still in use is freed when their last tensor is gone."""
        self._closed = True
        self._free.clear()

    def _put_back(self, buffer: _Buffer) -> None:
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
    """Page-lock this memory, so that CUDA copies from it while it computes. Raises LoaderError if
    CUDA refuses."""
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
    # Every view of the mapping refers to `base`: it dies after all views and before the memory is
    # unmapped, which is the moment to unregister.
    weakref.finalize(pixels.base, cuda.cudaHostUnregister, pixels.ctypes.data).atexit = False
