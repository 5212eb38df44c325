"""Find all pairs of 64-bit hashes that differ in at most d bits, without comparing all pairs, and
the groups that they form.

The bits are divided into m > d blocks. Two hashes that differ in d bits differ in d blocks at most,
so they agree in m - d whole blocks: for each choice of m - d blocks, the hashes are sorted by these
bits alone and compared with those that share all of them (Manku, Jain, Das Sarma, WWW 2007). So no
pair within distance d is missed. m is chosen by the number of hashes: few large blocks mean few
sorts with many comparisons each, many small blocks the reverse.

DuckDB sorts, on disk where memory does not suffice; numpy compares. Where more than MAX_NEIGHBOURS
hashes share a key, each is compared with the MAX_NEIGHBOURS before it only. This bounds the time
for adversarial data, and can miss pairs there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import duckdb
import numpy as np

HASH_BITS = 64
MAX_NEIGHBOURS = 2000
HASHES_PER_BATCH = 1 << 20
# Cost of sorting a row, in comparisons: it decides between few sorts and few comparisons.
_SORT_COST = 40
_COLUMNS = ("id", "hash", "red", "green", "blue")


@dataclass(frozen=True)
class Nearness:
    """Largest distance at which two pictures count as one: hash bits that differ, and levels (of
    255) between the mean colours, for each of red, green and blue."""

    max_bits: int
    max_colour: int


class Groups:
    """Disjoint sets (union-find) over 0 .. size-1, in an array of 4 bytes per element. The root of
    a set is its smallest element."""

    def __init__(self, size: int) -> None:
        self._parent = np.arange(size, dtype=np.uint32)

    def roots(self, elements: np.ndarray) -> np.ndarray:
        """Return the root of each element, and shorten their paths to it."""
        roots = self._parent[elements]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                self._parent[elements] = roots
                return roots
            roots = above

    def join(self, left: np.ndarray, right: np.ndarray) -> None:
        """Unite left[i] with right[i] for every i. Links go from larger to smaller elements, so
        there are no cycles; if one root gets several links, the smallest wins and the others are
        tried again."""
        while len(left):
            left, right = self.roots(left), self.roots(right)
            apart = left != right
            left, right = left[apart], right[apart]
            np.minimum.at(self._parent, np.maximum(left, right), np.minimum(left, right))

    def members(self) -> tuple[np.ndarray, np.ndarray]:
        """Return elements and their roots, for all elements that are not roots themselves."""
        everything = np.arange(len(self._parent), dtype=np.uint32)
        roots = self.roots(everything)
        moved = roots != everything
        return everything[moved], roots[moved]


def block_masks(num_hashes: int, max_bits: int) -> list[int]:
    """Return the sets of bits to sort by, as 64-bit masks, for the cheapest m."""

    def cost(blocks: int) -> float:
        key_bits = HASH_BITS * (blocks - max_bits) / blocks
        return math.comb(blocks, max_bits) * (_SORT_COST + num_hashes / 2 / 2**key_bits)

    blocks = min(range(max_bits + 1, max_bits + 6), key=cost)
    ends = [HASH_BITS * number // blocks for number in range(blocks + 1)]
    masks = [(1 << ends[n + 1]) - (1 << ends[n]) for n in range(blocks)]
    return [sum(kept) for kept in combinations(masks, blocks - max_bits)]


def group_near(
    database: duckdb.DuckDBPyConnection, table: str, nearness: Nearness
) -> tuple[np.ndarray, np.ndarray]:
    """Return two arrays: ids of the rows of `table` that are in a group, and the ids of their
    groups.

    A group is named by its smallest id, which is not listed itself.

    `table` has `id` (0 .. rows-1), `hash` (UBIGINT), `red`, `green`, `blue` (0 to 255). Memory: 4
    bytes per row, besides the database's limit.
    """
    (num_rows,) = database.execute(f"SELECT count(*) FROM {table}").fetchall()[0]
    groups = Groups(num_rows)
    if num_rows > 1:
        for mask in block_masks(num_rows, nearness.max_bits):
            for left, right in pairs_by_mask(database, table, mask, nearness):
                groups.join(left, right)
    return groups.members()


def pairs_by_mask(
    database: duckdb.DuckDBPyConnection, table: str, mask: int, nearness: Nearness
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pairs of ids whose hashes agree in all bits of `mask` and are near, batch by batch."""
    reader = database.sql(
        f"SELECT {', '.join(_COLUMNS)} FROM {table} ORDER BY hash & {mask}::UBIGINT, hash, id"
    ).to_arrow_reader(HASHES_PER_BATCH)
    carried = {name: np.empty(0, np.uint8) for name in _COLUMNS}
    for batch in reader:
        new = {name: batch.column(name).to_numpy(zero_copy_only=False) for name in _COLUMNS}
        rows = {
            name: np.concatenate([carried[name].astype(new[name].dtype), new[name]])
            for name in _COLUMNS
        }
        yield from _near_neighbours(rows, len(carried["id"]), np.uint64(mask), nearness)
        carried = {name: values[-MAX_NEIGHBOURS:] for name, values in rows.items()}


def _near_neighbours(
    rows: dict[str, np.ndarray], num_old: int, mask: np.uint64, nearness: Nearness
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Compare each row from `num_old` on with the rows before it that have its key. Keys are
    sorted: if the k-th row before has another key, so have all earlier ones."""
    keys, hashes = rows["hash"] & mask, rows["hash"]
    active = np.arange(num_old, len(keys))
    for step in range(1, MAX_NEIGHBOURS + 1):
        active = active[active >= step] if len(active) and active[0] < step else active
        active = active[keys[active] == keys[active - step]]
        if not len(active):
            return
        near = np.bitwise_count(hashes[active] ^ hashes[active - step]) <= nearness.max_bits
        close = active[near]
        for colour in ("red", "green", "blue"):
            values = rows[colour]
            apart = values[close].astype(np.int16) - values[close - step]
            close = close[np.abs(apart) <= nearness.max_colour]
        if len(close):
            yield rows["id"][close - step], rows["id"][close]
