"""Memory that processes share and that has no name: nothing of it can be left behind.

memfd_create (Linux 3.17) gives a file that lives in memory as long as a process has it open or
mapped. Against multiprocessing.shared_memory: nothing is to be unlinked, even after kill -9 of
everyone, and it does not count against the size of /dev/shm, which is 64 MB in a container.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from dataclasses import dataclass

import numpy as np

from pipeline.data.batches.slots import BatchArrays, RankShare

_ALIGNMENT = 64


@dataclass(frozen=True)
class BatchLayout:
    """Where the arrays of one batch lie in a piece of memory."""

    batch_size: int
    image_size: int
    context_length: int

    @classmethod
    def of(cls, share: RankShare) -> BatchLayout:
        return cls(share.batch_size, share.image_size, share.context_length)

    @property
    def num_bytes(self) -> int:
        return self._places()[-1]

    def arrays(self, memory: mmap.mmap) -> BatchArrays:
        """Views of `memory`, which they keep mapped."""
        tokens, caption_ids, _ = self._places()
        size, side = self.batch_size, self.image_size
        whole = np.frombuffer(memory, dtype=np.uint8)
        return BatchArrays(
            whole[: size * 3 * side**2].reshape(size, 3, side, side),
            whole[tokens : tokens + 2 * size * self.context_length]
            .view(np.uint16)
            .reshape(size, self.context_length),
            whole[caption_ids : caption_ids + 8 * size].view(np.uint64),
        )

    def _places(self) -> tuple[int, int, int]:
        """Where tokens and caption ids begin, and the end."""
        tokens = _aligned(self.batch_size * 3 * self.image_size**2)
        caption_ids = _aligned(tokens + 2 * self.batch_size * self.context_length)
        return tokens, caption_ids, _aligned(caption_ids + 8 * self.batch_size)


def create_memory(num_bytes: int) -> int:
    """A descriptor, which the caller closes. Raises OSError."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("loader")
    else:  # macOS: a file without a name
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        os.truncate(descriptor, num_bytes)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
