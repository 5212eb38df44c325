"""The order of a mixture of data sets: which source each position takes, and which sample of it.

Source s gets the share w_s of all positions, evenly spread: among the first p positions it has
w_s * p of them, give or take less than the number of sources (independent draws would be off by
sqrt(p * w_s * (1 - w_s))), and so has every batch. The spread is a closed form: of the positions
that sources 1 .. s-1 leave, counted by q, source s takes those at which floor(r * q) rises, with
r = w_s / (w_s + w_{s+1} + ...), and its own position is floor(r * q).

Each source has its own SampleOrder on its own positions: its own epochs, exact, however often the
others have been through theirs, and its own lanes, as many as its share of the global batch. So a
mixture, too, depends on nothing but (seed, position), and `samples_seen` is its whole state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data.order.sample_order import IntArray, Order

# Shares are multiples of 2**-30: r * q stays in 64 bits for any q, and a weight is off by 1e-9.
_SHARE_BITS = 30


@dataclass(frozen=True)
class Source:
    order: Order
    """Order over this source's own positions; its num_samples is the length of its epoch."""
    share: float
    first_sample: int
    """Offset that is added to the source's sample numbers in the mixture."""


class MixtureOrder(Order):
    """Interleaves sources by their shares; samples are numbered through all sources."""

    def __init__(self, sources: Sequence[Source], *, global_batch_size: int) -> None:
        if not sources or min(source.share for source in sources) <= 0:
            raise ValueError("a mixture needs sources, each with a share above 0")
        self.sources = tuple(sources)
        self.global_batch_size = global_batch_size
        self.chunk_size = max(source.order.chunk_size for source in sources)
        self.num_samples = sum(source.order.num_samples for source in sources)
        left = np.cumsum([source.share for source in sources][::-1])[::-1]
        self._ratios = [
            min(max(round(source.share / rest * 2**_SHARE_BITS), 1), 2**_SHARE_BITS - 1)
            for source, rest in zip(sources[:-1], left)
        ]

    def samples(self, positions: IntArray) -> IntArray:
        which, inside = self.split(positions)
        out = np.empty_like(positions)
        for number, source in enumerate(self.sources):
            taken = which == number
            if taken.any():
                out[taken] = source.first_sample + source.order.samples(inside[taken])
        return out

    def split(self, positions: IntArray) -> tuple[IntArray, IntArray]:
        """(number of the source, position in that source) of each position."""
        which = np.full_like(positions, len(self.sources) - 1)
        inside = np.empty_like(positions)
        undecided = np.ones(positions.shape, dtype=bool)
        rest = positions.copy()
        for number, ratio in enumerate(self._ratios):
            before = _floor_of_product(rest, ratio)
            # This source takes a position where floor(ratio * rest) rises; the others keep what is
            # left, renumbered without gaps.
            taken = undecided & (_floor_of_product(rest + 1, ratio) > before)
            which[taken], inside[taken] = number, before[taken]
            undecided &= ~taken
            rest -= before
        inside[undecided] = rest[undecided]
        return which, inside

    def epochs(self, samples_seen: int) -> list[float]:
        """How often the run has been through each source at a position."""
        counts, rest = [], samples_seen
        for ratio in self._ratios:
            counts.append(rest * ratio >> _SHARE_BITS)
            rest -= counts[-1]
        counts.append(rest)
        return [count / source.order.num_samples for count, source in zip(counts, self.sources)]


def _floor_of_product(values: IntArray, ratio: int) -> IntArray:
    """floor(values * ratio / 2**_SHARE_BITS) without a product of more than 64 bits."""
    high, low = values >> _SHARE_BITS, values & (2**_SHARE_BITS - 1)
    return high * ratio + (low * ratio >> _SHARE_BITS)
