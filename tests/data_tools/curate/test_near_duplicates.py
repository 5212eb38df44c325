from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.curate import near_duplicates
from data_tools.curate.near_duplicates import Groups, Nearness, block_masks, group_near


def table_of(hashes: np.ndarray, colours: np.ndarray | None = None) -> pa.Table:
    colours = np.zeros((len(hashes), 3), np.uint8) if colours is None else colours
    return pa.table(
        {
            "id": np.arange(len(hashes), dtype=np.int64),
            "hash": hashes.astype(np.uint64),
            **{name: colours[:, n] for n, name in enumerate(("red", "green", "blue"))},
        }
    )


def grouped(table: pa.Table, nearness: Nearness) -> dict[int, int]:
    with duckdb.connect() as database:
        database.register("source", table)
        database.execute("CREATE TABLE nodes AS SELECT * FROM source")
        ids, roots = group_near(database, "nodes", nearness)
    return dict(zip(ids.tolist(), roots.tolist()))


def by_all_pairs(table: pa.Table, nearness: Nearness) -> dict[int, int]:
    """Smallest id that is connected to each, by comparing all with all."""
    hashes = table["hash"].to_numpy()
    colours = np.stack([table[n].to_numpy() for n in ("red", "green", "blue")], 1).astype(int)
    near = np.bitwise_count(hashes[:, None] ^ hashes[None]) <= nearness.max_bits
    near &= np.abs(colours[:, None] - colours[None]).max(2) <= nearness.max_colour
    labels = np.arange(len(hashes))
    for _ in range(len(hashes)):
        labels = np.where(near, labels[None], len(hashes)).min(1)
    return {n: int(label) for n, label in enumerate(labels) if n != label}


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 60),
    st.integers(0, 5),
    st.integers(0, 30),
    st.integers(1, 64),
)
def test_groups_are_those_of_comparing_all_pairs(seed, count, bits, colour, spread):
    """Hashes around a few centres, so that chains and near misses are frequent."""
    random = np.random.default_rng(seed)
    centres = random.integers(0, 2**64, 3, dtype=np.uint64)
    hashes = centres[random.integers(0, 3, count)]
    for _ in range(4):
        hashes = hashes ^ (np.uint64(1) << random.integers(0, spread, count, dtype=np.uint64))
    table = table_of(hashes, random.integers(0, 60, (count, 3)).astype(np.uint8))
    nearness = Nearness(bits, colour)
    assert grouped(table, nearness) == by_all_pairs(table, nearness)


@pytest.mark.parametrize("num_hashes", [10, 10**5, 10**7, 10**8, 10**9])
@pytest.mark.parametrize("bits", range(9))
def test_any_flips_leave_one_mask_untouched(num_hashes, bits):
    """The pigeonhole: whatever bits differ, some mask has none of them."""
    masks = block_masks(num_hashes, bits)
    random = np.random.default_rng(bits)
    for _ in range(300):
        flipped = sum(1 << int(bit) for bit in random.choice(64, bits, replace=False))
        assert any(mask & flipped == 0 for mask in masks)


def test_more_hashes_are_sorted_by_more_bits():
    few, many = (block_masks(count, 3) for count in (10**4, 10**8))
    assert len(few) == 4 and min(mask.bit_count() for mask in few) == 16
    assert len(many) > 4 and min(mask.bit_count() for mask in many) >= 25


def test_planted_copies_are_all_found(monkeypatch):
    """Over the borders of the batches in which they come from the database."""
    monkeypatch.setattr(near_duplicates, "HASHES_PER_BATCH", 2048)
    random = np.random.default_rng(1)
    originals = random.integers(0, 2**64, 20_000, dtype=np.uint64)
    copies = originals[:1000].copy()
    for _ in range(3):
        copies ^= np.uint64(1) << random.integers(0, 64, 1000, dtype=np.uint64)
    found = grouped(table_of(np.concatenate([originals, copies])), Nearness(3, 0))
    assert found == {20_000 + n: n for n in range(1000)}


def test_a_crowd_with_one_key_takes_bounded_time():
    """20,000 hashes that share 32 bits: 2 * 10^8 pairs, were all compared."""
    random = np.random.default_rng(2)
    hashes = np.unique(random.integers(0, 2**32, 20_000, dtype=np.uint64))
    copies = hashes[:50] ^ np.uint64(1)
    near_duplicates_found = grouped(
        table_of(np.unique(np.concatenate([hashes, copies]))), Nearness(1, 0)
    )
    assert len(near_duplicates_found) >= 50


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=60))
def test_disjoint_sets(links):
    groups = Groups(41)
    for start in range(0, len(links), 7):
        part = np.array(links[start : start + 7])
        groups.join(part[:, 0], part[:, 1])
    parent = list(range(41))
    for _ in range(41):
        for left, right in links:
            parent[left] = parent[right] = min(parent[left], parent[right])
    ids, roots = groups.members()
    assert dict(zip(ids.tolist(), roots.tolist())) == {n: p for n, p in enumerate(parent) if n != p}
