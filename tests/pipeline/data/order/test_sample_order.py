"""The order of samples: exact epochs, the same for every number of ranks, resumable anywhere."""

from __future__ import annotations

import re
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.order.sample_order import _CUT, SampleOrder, keys_of, permute

SEEDS = st.integers(0, 2**63 - 1)
FROZEN_FIRST = [112, 419, 330, 776, 714, 481, 261, 747]
FROZEN_SECOND_EPOCH = [611, 661, 280, 941, 20, 237, 758, 749]


@st.composite
def orders(draw, max_samples=400):
    num_samples = draw(st.integers(1, max_samples))
    return SampleOrder(
        num_samples,
        chunk_size=draw(st.integers(1, 50)),
        global_batch_size=draw(st.integers(1, num_samples)),
        seed=draw(SEEDS),
    )


@given(orders(), st.integers(0, 10**7))
def test_each_epoch_holds_each_sample_once(order, epoch):
    start = epoch * order.num_samples
    samples = order.samples(np.arange(start, start + order.num_samples))
    assert sorted(samples) == list(range(order.num_samples))


@given(orders(), st.integers(0, 1000))
def test_batches_of_an_epoch_join_to_the_epoch(order, batch):
    """`batch` is a window of the same order: no batch, the one across two epochs included, loses
    or repeats a position."""
    size = order.global_batch_size
    joined = np.concatenate([order.batch((batch + i) * size) for i in range(3)])
    expected = order.samples(np.arange(batch * size, (batch + 3) * size))
    assert np.array_equal(joined, expected)


@given(
    num_samples=st.integers(8, 500),
    lanes_per_rank=st.integers(1, 12),
    chunk_size=st.integers(1, 20),
    seed=SEEDS,
    step=st.integers(0, 10**6),
)
def test_any_number_of_ranks_gives_the_same_global_batch(
    num_samples, lanes_per_rank, chunk_size, seed, step
):
    batch_size = 8 * lanes_per_rank
    order = SampleOrder(
        num_samples + batch_size, chunk_size=chunk_size, global_batch_size=batch_size, seed=seed
    )
    whole = order.batch(step * batch_size)
    for world_size in (1, 2, 4, 8):
        local = batch_size // world_size
        shares = [
            order.batch(step * batch_size, rank * local, (rank + 1) * local)
            for rank in range(world_size)
        ]
        assert np.array_equal(np.concatenate(shares), whole)


@given(orders(), st.lists(st.integers(0, 10**9), min_size=1, max_size=20))
def test_a_position_does_not_depend_on_what_is_asked_with_it(order, positions):
    together = order.samples(np.array(positions))
    alone = [int(order.samples(np.array([position]))[0]) for position in positions]
    assert together.tolist() == alone


@given(orders())
def test_full_rows_draw_each_batch_from_different_chunks(order):
    """In the rows of B full chunks a lane reads neighbours, and a batch meets no chunk twice."""
    size, chunk = order.global_batch_size, order.chunk_size
    rows = order.num_samples // chunk // size
    assert rows >= 1
    epoch = order.samples(np.arange(order.num_samples))
    table = epoch[: rows * size * chunk].reshape(rows, chunk, size)
    # Sorted along the lane, the samples of a chunk are neighbours modulo the number of samples.
    shifted = (table - table.min(axis=1, keepdims=True)) % order.num_samples
    wrapped = shifted.max(axis=1) >= chunk
    assert wrapped.sum() <= 1, "only the chunk across the data set's end is not one run"
    runs = [set(lane) for row in table for lane in row.T]
    assert sum(len(run) for run in runs) == len(set().union(*runs))


def test_negatives_come_from_the_whole_data_set():
    """Lanes run in lockstep; without the keyed start inside each chunk, two samples could meet in a
    batch only if their offsets in their chunks are equal: 1 pair in c."""
    order = SampleOrder(256, chunk_size=16, global_batch_size=16, seed=3)
    met = np.zeros((256, 256), dtype=bool)
    for step in range(16 * 150):
        batch = order.batch(step * 16)
        met[np.ix_(batch, batch)] = True
    assert met.mean() > 0.95


def test_the_short_chunk_is_another_one_each_epoch():
    order = SampleOrder(1000, chunk_size=16, global_batch_size=8, seed=0)
    last = [int(order.samples(np.array([epoch * 1000 + 999]))[0]) for epoch in range(200)]
    assert len(set(last)) > 150


def test_seeds_and_epochs_give_different_orders():
    def epoch(seed, number):
        order = SampleOrder(512, chunk_size=1, global_batch_size=8, seed=seed)
        return order.samples(np.arange(512 * number, 512 * (number + 1))).tolist()

    assert len({tuple(epoch(seed, number)) for seed in range(4) for number in range(4)}) == 16


@given(st.integers(1, 3000), SEEDS)
def test_permute_is_a_permutation(size, key):
    keys = np.full(size, key, dtype=np.uint64)
    assert sorted(permute(np.arange(size), size, keys)) == list(range(size))


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_small_permutations_are_all_equally_likely(size):
    """Chi-square over all size! permutations and many keys; the bound is at 5 sigma."""
    num_keys = 24_000
    keys = np.random.default_rng(size).integers(0, 2**63, num_keys, dtype=np.uint64)
    values = np.tile(np.arange(size), num_keys)
    permuted = permute(values, size, np.repeat(keys, size)).reshape(num_keys, size)
    counts = Counter(map(tuple, permuted.tolist()))
    cells = int(np.prod(np.arange(1, size + 1)))
    expected = num_keys / cells
    chi_square = sum((counts[cell] - expected) ** 2 / expected for cell in counts)
    chi_square += (cells - len(counts)) * expected
    assert chi_square < (cells - 1) + 5 * np.sqrt(2 * (cells - 1))


def test_places_of_a_large_permutation_are_uniform_and_uncorrelated():
    size = 100_003
    keys = np.full(size, 12345, dtype=np.uint64)
    places = permute(np.arange(size), size, keys)
    # Rank correlations of neighbours and with the identity: standard error 1/sqrt(size) = 0.003.
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.016
    assert abs(np.corrcoef(places, np.arange(size))[0, 1]) < 0.016
    other = permute(np.arange(size), size, keys + np.uint64(1))
    assert abs(np.corrcoef(places, other)[0, 1]) < 0.016


def test_order_is_frozen():
    """A resumed run must find the order its earlier part used: a change here breaks checkpoints."""
    order = SampleOrder(1000, chunk_size=16, global_batch_size=8, seed=42)
    assert order.batch(0).tolist() == FROZEN_FIRST
    assert order.batch(1000).tolist() == FROZEN_SECOND_EPOCH


def test_the_example_of_the_readme():
    """Two epochs of 11 samples: every batch that pipeline/data/README.md prints, and its cuts."""
    text = (Path(__file__).parents[4] / "pipeline/data/README.md").read_text()
    order = SampleOrder(11, chunk_size=3, global_batch_size=2, seed=0)
    lines = re.findall(r"samples_seen +(\d+): +(\d+) +(\d+)", text)
    printed = {int(seen): [int(first), int(second)] for seen, first, second in lines}
    assert printed == {seen: order.batch(seen).tolist() for seen in range(0, 22, 2)}
    cuts = [int(cut) for cut in re.findall(r"epoch \d: cut at (\d+)", text)]
    assert cuts == (keys_of(0, np.array([0, 1]), _CUT) % np.uint64(11)).tolist()


def test_four_hundred_million_samples_cost_nothing():
    tracemalloc.start()
    order = SampleOrder(400_000_000, chunk_size=16, global_batch_size=32_768, seed=1)
    batch = order.batch(32_768 * 10_000, 0, 4096)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(batch.tolist())) == 4096
    assert peak < 5_000_000


@given(st.integers(1, 100), st.integers(101, 200))
def test_a_batch_larger_than_the_data_set_is_refused(num_samples, batch_size):
    with pytest.raises(ValueError, match=f"{num_samples} samples.*{batch_size}"):
        SampleOrder(num_samples, chunk_size=4, global_batch_size=batch_size, seed=0)


@pytest.mark.parametrize("samples_seen", [-8, 4, 9])
def test_a_position_off_the_batches_is_refused(samples_seen):
    order = SampleOrder(100, chunk_size=4, global_batch_size=8, seed=0)
    with pytest.raises(ValueError, match="not a multiple"):
        order.batch(samples_seen)


@settings(max_examples=25)
@given(st.integers(1, 60), st.integers(0, 3))
def test_chunks_are_shortened_so_that_a_row_is_full(batch_size, extra):
    order = SampleOrder(
        batch_size * 2 + extra, chunk_size=10_000, global_batch_size=batch_size, seed=0
    )
    assert order.chunk_size == (batch_size * 2 + extra) // batch_size
