"""Mixtures: shares exact to a sample or two, epochs of each source exact, the same everywhere."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.dataset.manifest import load_manifest
from pipeline.config import DataConfig, SourceConfig
from pipeline.data import LoaderError
from pipeline.data.order.mixture import MixtureOrder, Source
from pipeline.data.order.sample_order import SampleOrder
from tests.pipeline.data.loading import equal, small_loader, take
from tests.pipeline.data.made_shards import make_samples, write_shards

SEEDS = st.integers(0, 2**62)


def mixture(weights, sizes, batch_size, seed=0, chunk_size=5):
    sources, first = [], 0
    for number, (weight, size) in enumerate(zip(weights, sizes)):
        lanes = min(size, max(1, round(weight / sum(weights) * batch_size)))
        order = SampleOrder(
            size, chunk_size=chunk_size, global_batch_size=lanes, seed=seed + number
        )
        sources.append(Source(order, weight / sum(weights), first))
        first += size
    return MixtureOrder(sources, global_batch_size=batch_size)


@st.composite
def mixtures(draw):
    count = draw(st.integers(1, 6))
    return mixture(
        draw(st.lists(st.floats(0.01, 50), min_size=count, max_size=count)),
        draw(st.lists(st.integers(1, 200), min_size=count, max_size=count)),
        8 * draw(st.integers(1, 6)),
        draw(SEEDS),
        draw(st.integers(1, 20)),
    )


@given(mixtures(), st.integers(0, 10**12), st.integers(1, 2000))
def test_weights_are_honoured_to_within_the_number_of_sources(order, start, count):
    """Of any stretch of the run; independent draws would stay within sqrt(n w (1-w)) only."""
    which, _ = order.split(np.arange(start, start + count))
    for number, source in enumerate(order.sources):
        # From 0 to p the count is off by less than the number of sources: a stretch by twice that.
        bound = 2 * len(order.sources) + count * 1e-8
        assert abs((which == number).sum() - source.share * count) < bound


def test_shares_are_closer_than_independent_draws():
    order = mixture([0.7, 0.2, 0.1], [100, 100, 100], 32)
    for count in (10**3, 10**6):
        which, _ = order.split(np.arange(count))
        for number, share in enumerate((0.7, 0.2, 0.1)):
            assert abs((which == number).sum() - share * count) <= 2
            assert 2 < 3 * math.sqrt(count * share * (1 - share))


@given(mixtures(), st.integers(1, 3000))
def test_each_source_is_walked_through_without_gap(order, count):
    which, inside = order.split(np.arange(count))
    for number in range(len(order.sources)):
        mine = inside[which == number]
        assert mine.tolist() == list(range(len(mine)))


@given(mixtures())
def test_each_epoch_of_each_source_holds_each_of_its_samples_once(order):
    samples = order.samples(np.arange(3000))
    for source in order.sources:
        size = source.order.num_samples
        mine = samples[(samples >= source.first_sample) & (samples < source.first_sample + size)]
        for start in range(0, len(mine) - size + 1, size):
            assert len(set(mine[start : start + size].tolist())) == size


@pytest.mark.slow
@given(mixtures(), st.integers(0, 10**9))
def test_ranks_and_the_place_of_the_start_change_nothing(order, step):
    size = order.global_batch_size
    whole = order.batch(step * size)
    for world_size in (1, 2, 4, 8):
        local = size // world_size
        parts = [
            order.batch(step * size, rank * local, (rank + 1) * local) for rank in range(world_size)
        ]
        assert np.array_equal(np.concatenate(parts), whole)
    alone = [int(order.samples(np.array([step * size + lane]))[0]) for lane in range(size)]
    assert alone == whole.tolist()


@given(mixtures(), st.integers(0, 5000))
def test_epochs_count_what_was_taken(order, samples_seen):
    which, _ = order.split(np.arange(samples_seen))
    counts = [int((which == number).sum()) for number in range(len(order.sources))]
    sizes = [source.order.num_samples for source in order.sources]
    assert order.epochs(samples_seen) == [c / s for c, s in zip(counts, sizes)]


def test_order_of_a_mixture_is_frozen():
    order = mixture([3, 1], [100, 10], 8, seed=42)
    assert order.batch(800).tolist() == FROZEN


FROZEN = [107, 71, 80, 78, 102, 58, 64, 95]


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    paths = []
    for name, count in (("web", 60), ("own", 10)):
        samples = [replace(sample, key=f"{name}{sample.key}") for sample in make_samples(count)]
        paths.append(write_shards(tmp_path_factory.mktemp(name), samples, per_shard=20))
    return paths


def loader_of(manifests, weights, rank=0, world_size=1, batch_size=8, **config):
    sources = [SourceConfig(manifest=str(m), weight=w) for m, w in zip(manifests, weights)]
    config = DataConfig(mixture=sources, prefetch_batches=2, **config)
    return small_loader(config, batch_size, rank, world_size)


def test_a_mixture_end_to_end(manifests):
    """Two parts of one data set, one of another that is six times as small: up-sampled."""
    batches = take(loader_of(manifests, [2, 1]), 30)
    sources = Counter(key[:3] for batch in batches for key in batch.keys)
    assert abs(sources["web"] - 160) <= 2 and abs(sources["own"] - 80) <= 2
    own = [key for batch in batches for key in batch.keys if key.startswith("own")]
    for start in range(0, 70, 10):
        assert len(set(own[start : start + 10])) == 10
    resumed = take(loader_of(manifests, [2, 1], num_workers=3), 5, samples_seen=8 * 25)
    assert all(equal(a, b) for a, b in zip(resumed, batches[25:]))
    halves = [take(loader_of(manifests, [2, 1], rank, 2), 30) for rank in range(2)]
    for whole, first, second in zip(batches, *halves):
        assert first.keys + second.keys == whole.keys


def test_the_fingerprint_tells_mixtures_apart(manifests):
    with loader_of(manifests, [2, 1]) as a, loader_of(manifests, [1, 2]) as b:
        assert a.fingerprint != b.fingerprint != load_manifest(manifests[0]).fingerprint


def test_faults_of_a_mixture_name_the_data_set(tmp_path):
    paths = []
    for name in "ab":
        samples = make_samples(20)
        if name == "b":
            samples[3].image = b"rubbish"
        paths.append(write_shards(tmp_path / name, samples, 20))
    loader = loader_of(paths, [1, 1], max_bad_fraction=1.0)
    take(loader, 10)
    assert loader.faults.num_bad
    assert {shard for shard, _ in loader.faults.worst_shards()} == {
        f"{tmp_path}/b/shards/000000.tar"
    }


def test_a_source_without_captions_is_refused_at_start(manifests, tmp_path):
    samples = [replace(sample, caption=None) for sample in make_samples(30)]
    bad = write_shards(tmp_path, samples, 30)
    with pytest.raises(LoaderError, match="30 of 30 samples.*no caption"):
        loader_of([manifests[0], bad], [1, 1])
