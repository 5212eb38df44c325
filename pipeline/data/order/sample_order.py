"""The order of training samples: a closed form of (seed, position), with no table and no state.

Position p counts samples from the start of the run, over all ranks; `samples_seen` is a position.
Element i of the global batch that starts at p is position p + i, so a batch knows nothing of ranks
and workers: a rank takes a slice of it, its lanes.

Epoch e = p // N is exactly N positions long and holds each of the N samples once. Inside an epoch,
with j = p mod N, chunk length c, global batch B, F = N // c full chunks, r = N mod c samples left
over and w = F mod B:

- Rows: B chunks side by side, read in lockstep. Column j mod B of row g = j // (B*c) is chunk
  q = g*B + column, at its step (j mod B*c) // B. So a lane stays in one chunk for c batches.
- Last row: the w full chunks that are left and, as one more column for its first r steps, the
  short chunk of r samples. Being narrower than B, it gives a batch several samples of a chunk.
- Chunks: q is permuted by a keyed Feistel network (cycle walking, no table). A chunk is read from
  a keyed inner step on and wraps: in lockstep, samples with different offsets in their chunks
  would otherwise never meet in a batch, and negatives would come from 1/c of the data.
- Cut: where the data set is cut into chunks is shifted by a keyed amount, so that each epoch has
  another short chunk.

Everything keyed depends on (seed, e). A batch across two epochs ends one and begins the next: it
can hold a sample twice, once of each epoch; no sample is lost or moved to another epoch. c is
lowered to N // B where B chunks of the asked length would not fit.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
KeyArray = NDArray[np.uint64]

# Four rounds make a pseudo-random permutation of a large domain (Luby and Rackoff, 1988); domains
# of a few elements need more before each of their permutations is equally likely.
_FEISTEL_ROUNDS = 10
_GOLDEN = 0x9E3779B97F4A7C15
_CUT, _CHUNK, _INNER = 1, 2, 3


def mix64(values: KeyArray) -> KeyArray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): a bijection of 64-bit words
    without visible structure.
    """
    # uint64 arithmetic wraps modulo 2**64; the formula relies on that.
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def keys_of(seed: int, epochs: IntArray, purpose: int) -> KeyArray:
    """A uniform 64-bit word for each epoch, another for each seed and purpose."""
    start = np.full(epochs.shape, seed % 2**64, dtype=np.uint64)
    keyed = mix64(mix64(start) + epochs.astype(np.uint64) * np.uint64(_GOLDEN))
    return mix64(keyed + np.uint64(purpose))


def permute(values: IntArray, size: int, keys: KeyArray) -> IntArray:
    """A keyed permutation of range(size), applied to `values` (any subset of it, one key each).

    A Feistel network over pairs of digits in an even base just above sqrt(size): its domain is
    hardly larger than `size`, and a value that falls outside is sent through again until it is
    inside, which keeps it a bijection. An odd base would only ever give even permutations.
    """
    base = math.isqrt(size - 1) + 1 if size > 1 else 1
    side = np.uint64(base + base % 2)
    out = _feistel(values.astype(np.uint64), side, keys)
    # Cycle walking: the network permutes side**2 >= size values. From a value inside, repeating it
    # must come back inside, because a permutation consists of cycles; so no two inputs collide.
    while (outside := out >= np.uint64(size)).any():
        out[outside] = _feistel(out[outside], side, keys[outside])
    return out.astype(np.int64)


def _feistel(values: KeyArray, side: np.uint64, keys: KeyArray) -> KeyArray:
    left, right = values // side, values % side
    # Each round adds a function of `right` to `left` and swaps the two. Whatever the function, a
    # round can be undone (subtract it again), so the network is a permutation.
    for number in range(_FEISTEL_ROUNDS):
        round_keys = keys + np.uint64((number + 1) * _GOLDEN % 2**64)
        left, right = right, (left + mix64(right ^ mix64(round_keys)) % side) % side
    return left * side + right


class Order(ABC):
    """Which sample each position of a run holds; a closed form of the position."""

    global_batch_size: int
    chunk_size: int
    num_samples: int
    """Samples per epoch."""

    @abstractmethod
    def samples(self, positions: IntArray) -> IntArray:
        """Sample numbers at these positions of the run, in any order and of any epochs."""

    def batch(self, samples_seen: int, start: int = 0, stop: int | None = None) -> IntArray:
        """Samples of elements start..stop (default: all) of the global batch that begins at
        position `samples_seen`.
        """
        if samples_seen < 0 or samples_seen % self.global_batch_size:
            raise ValueError(
                f"samples_seen is {samples_seen}, not a multiple of the global batch size "
                f"{self.global_batch_size}: a run cannot change its global batch size"
            )
        stop = self.global_batch_size if stop is None else stop
        return self.samples(np.arange(samples_seen + start, samples_seen + stop, dtype=np.int64))


class SampleOrder(Order):
    """Which sample each position of the run holds. Pure: two instances with equal arguments give
    equal orders.
    """

    def __init__(
        self, num_samples: int, *, chunk_size: int, global_batch_size: int, seed: int
    ) -> None:
        """Raises ValueError if a global batch would not fit into the data set, or for sizes below
        1.
        """
        if chunk_size < 1 or global_batch_size < 1:
            raise ValueError(
                f"chunk_size ({chunk_size}) and global_batch_size ({global_batch_size}) "
                f"must be at least 1"
            )
        if num_samples < global_batch_size:
            raise ValueError(
                f"{num_samples} samples do not fill one global batch of {global_batch_size}: "
                f"use a global batch size of at most {num_samples}"
            )
        self.num_samples = num_samples
        self.global_batch_size = global_batch_size
        self.chunk_size = min(chunk_size, num_samples // global_batch_size)
        self.seed = seed
        self._num_chunks, self._rest = divmod(num_samples, self.chunk_size)
        self._num_rows, self._last_width = divmod(self._num_chunks, global_batch_size)

    def samples(self, positions: IntArray) -> IntArray:
        """Sample numbers (0..num_samples-1) at these positions of the run, in any order and of any
        epochs.
        """
        epochs, inside = np.divmod(positions, self.num_samples)
        chunks, steps = self._chunk_and_step(inside)
        full = chunks < self._num_chunks
        keys = keys_of(self.seed, epochs, _CHUNK)
        chunks[full] = permute(chunks[full], self._num_chunks, keys[full])
        # A full chunk is read from step `turn` on and wraps. The short chunk is read from its
        # beginning: it has fewer than c samples of the whole epoch, so that hardly matters.
        turn = mix64(
            keys_of(self.seed, epochs, _INNER) + chunks.astype(np.uint64) * np.uint64(_GOLDEN)
        )
        turn = (turn % np.uint64(self.chunk_size)).astype(np.int64)
        steps = np.where(full, (steps + turn) % self.chunk_size, steps)
        # The chunks lie end to end on a circle of samples that is cut open at `cut`.
        cut = (keys_of(self.seed, epochs, _CUT) % np.uint64(self.num_samples)).astype(np.int64)
        return (cut + chunks * self.chunk_size + steps) % self.num_samples

    def _chunk_and_step(self, inside: IntArray) -> tuple[IntArray, IntArray]:
        """Chunk number before the permutation (num_chunks: the short one) and step in it, of
        positions in an epoch.
        """
        batch, chunk, width, rest = (
            self.global_batch_size,
            self.chunk_size,
            self._last_width,
            self._rest,
        )
        # Both layouts, full row and last row, are computed for all positions, and np.where picks:
        # vector code without branches. Values of the layout that is not picked mean nothing.
        # Full rows: `batch` columns of `chunk` steps, read step by step across the columns.
        row, in_row = np.divmod(inside, batch * chunk)
        steps, columns = np.divmod(in_row, batch)
        # Last row: `width` full chunks and the short chunk as one more column. The short chunk
        # lasts `rest` steps, so there are `rest` steps of width + 1 columns, then steps of width
        # columns.
        with_short = rest * (width + 1)
        early_steps, early_columns = np.divmod(in_row, width + 1)
        late_steps, late_columns = np.divmod(in_row - with_short, max(width, 1))  # 1: no /0
        early, last = in_row < with_short, row == self._num_rows
        steps = np.where(last, np.where(early, early_steps, rest + late_steps), steps)
        columns = np.where(last, np.where(early, early_columns, late_columns), columns)
        # The short chunk's column in the last row gets the number num_rows * B + w = num_chunks.
        return row * batch + columns, steps
