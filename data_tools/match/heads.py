"""Where in a text a query of several tokens may begin: a filter before the automaton."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# A table is 4 MB, which stay in the cache beside the text; at 500,000 queries 1 in 8 slots is used.
SLOT_BITS = 22
LONG = 255  # stands for this length and all longer ones
MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio


@dataclass(frozen=True)
class Near:
    """The tokens near which there may be a match."""

    at: np.ndarray
    """int64: their positions, and the position of one more token after each run, which separates
    the runs."""
    covered: np.ndarray
    """bool: False for the separating tokens."""


class Heads:
    """Hashes of how queries begin: of both tokens for queries of two tokens, of the first three for
    longer ones.

    For each hash, a table holds the length of the longest query that begins with these tokens. A
    collision of hashes costs time only, because the automaton decides what matches.
    """

    def __init__(self, numbers: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> None:
        self._longest = int(lengths.max(initial=0))
        self._reach = [
            self._table(numbers, starts[chosen], lengths[chosen], size)
            for size, chosen in ((2, lengths == 2), (3, lengths > 2))
        ]

    def near(self, numbers: np.ndarray) -> Near:
        """The places where queries may be. `numbers`: int, the token numbers of a text."""
        reach = np.zeros(len(numbers), np.int64)
        for size, table in zip((2, 3), self._reach):
            lengths = table[_hashes(numbers, size)]
            np.maximum(reach[: len(lengths)], lengths, out=reach[: len(lengths)])
        reach[reach == LONG] = self._longest
        begins = np.flatnonzero(reach)
        ends = np.minimum(begins + reach[begins], len(numbers))
        change = np.bincount(begins, minlength=len(numbers) + 1)
        change -= np.bincount(ends, minlength=len(numbers) + 1)
        covered = np.cumsum(change)[:-1] > 0
        shown = covered.copy()
        shown[1:] |= covered[:-1]
        at = np.flatnonzero(shown)
        return Near(at, covered[at])

    @staticmethod
    def _table(
        numbers: np.ndarray, starts: np.ndarray, lengths: np.ndarray, size: int
    ) -> np.ndarray:
        table = np.zeros(1 << SLOT_BITS, np.uint8)
        heads = numbers[starts[:, None] + np.arange(size)].reshape(-1)
        slots = _hashes(heads, size)[::size] if len(heads) else np.zeros(0, np.int64)
        np.maximum.at(table, slots, np.minimum(lengths, LONG).astype(np.uint8))
        return table


def _hashes(numbers: np.ndarray, size: int) -> np.ndarray:
    """int64: for every `size` tokens in a row, their slot, below 2^SLOT_BITS."""
    if len(numbers) < size:
        return np.zeros(0, np.int64)
    count = len(numbers) - size + 1
    mixed = numbers[:count].astype(np.uint64)
    for step in range(1, size):
        mixed = mixed * MIX + numbers[step : step + count].astype(np.uint64)
    return ((mixed * MIX) >> np.uint64(64 - SLOT_BITS)).astype(np.int64)
