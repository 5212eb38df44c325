"""Object stores: the batches of a local data set, few requests, faults told."""

from __future__ import annotations

import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.dataset.manifest import ManifestError, load_manifest
from pipeline.data import LoaderError
from pipeline.data.order.keep_probability import write_keep_probabilities
from pipeline.data.shards.dataset import open_dataset
from pipeline.data.shards.storage import RangeReader, RemoteStorage, open_storage
from tests.pipeline.data.loading import equal, loader_of, read_batches
from tests.pipeline.data.made_shards import make_samples, write_shards


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("good"), make_samples(75), per_shard=20)


@pytest.fixture
def remote(local):
    """The same data set in a store."""
    store = fsspec.filesystem("memory")
    store.put(f"{local.parent}/", "/bucket/data/", recursive=True)
    yield "memory://bucket/data/manifest.json"
    store.rm("/bucket", recursive=True)


def test_a_store_gives_the_batches_of_a_folder(local, remote):
    expected = read_batches(local, 20)
    assert all(equal(a, b) for a, b in zip(read_batches(remote, 20), expected))
    resumed = read_batches(remote, 3, samples_seen=8 * 17)
    assert all(equal(a, b) for a, b in zip(resumed, expected[17:]))


def test_a_chunk_costs_one_or_two_requests(local, remote):
    """16 samples a chunk, 8 lanes: without read-ahead each sample would be a request."""
    with loader_of(remote, prefetch_batches=1) as loader:
        iterator = loader.batches(0)
        for _ in range(8):  # of 9 steps a lane in its first chunk (75 // 8)
            next(iterator)
        reader = loader._lanes._reader._readers[0]._files
        assert isinstance(reader, RangeReader)
        # A chunk that wraps or crosses a border of two shards needs two, sizes vary by a little.
        assert reader.num_requests <= 8 * 4
        assert loader.faults.num_bad == 0


def test_epochs_by_keep_probability_of_a_store(tmp_path):
    samples = make_samples(75)
    for number, sample in enumerate(samples):
        sample.info = {"keep_probability": (number % 4 + 1) / 4}
    local = write_shards(tmp_path, samples, per_shard=20)
    write_keep_probabilities(load_manifest(local))
    expected = read_batches(local, 12, resample=True)
    store = fsspec.filesystem("memory")
    store.put(f"{tmp_path}/", "/bucket/drawn/", recursive=True)
    store.rm("/bucket/drawn/keep_probability", recursive=True)
    remote = "memory://bucket/drawn/manifest.json"
    try:
        with pytest.raises(LoaderError, match="/bucket/drawn/keep_probability/.*cannot be read"):
            loader_of(remote, resample=True)
        dataset = open_dataset(remote)
        write_keep_probabilities(dataset.manifest, dataset.storage)
        found = read_batches(remote, 12, resample=True)
        assert all(equal(a, b) for a, b in zip(found, expected))
        with loader_of(remote, resample=True) as loader:
            order = loader._order
            sent = pickle.loads(pickle.dumps(order))  # as workers get it
            positions = np.arange(500)
            assert np.array_equal(sent.samples(positions), order.samples(positions))
            assert len(pickle.dumps(order)) < 1000 + dataset.num_samples
    finally:
        store.rm("/bucket", recursive=True)


def test_missing_objects_are_an_error_at_start(remote):
    store = fsspec.filesystem("memory")
    store.rm("/bucket/data/shards/000001.tar")
    store.rm("/bucket/data/shards/000002.index.parquet")
    store.pipe_file("/bucket/data/shards/000003.tar", b"short")
    with pytest.raises(ManifestError) as caught:
        open_dataset(remote)
    for problem in (
        "shard shards/000001.tar is missing",
        "index shards/000002.index.parquet is missing",
        "shard shards/000003.tar has 5 bytes",
    ):
        assert problem in str(caught.value)
    with pytest.raises(ManifestError, match="no manifest at memory://bucket/nothing"):
        open_dataset("memory://bucket/nothing/manifest.json")
    with pytest.raises(ValueError, match="nosuch://x cannot be opened"):
        open_dataset("nosuch://x/manifest.json")


def test_an_object_lost_while_training_ends_the_run_by_name(remote):
    with loader_of(remote, prefetch_batches=1, max_bad_fraction=0.0) as loader:
        iterator = loader.batches(0)
        next(iterator)
        fsspec.filesystem("memory").rm("/bucket/data/shards/000001.tar")
        with pytest.raises(LoaderError, match="shards/000001.tar"):
            for _ in range(60):
                next(iterator)


class Store:
    """One object; counts requests, and fails or waits when told to."""

    def __init__(self, content, failures=0, wait_s=0.0):
        self.content, self.failures, self.wait_s = content, failures, wait_s
        self.asked = []

    def cat_file(self, path, start, end):
        self.asked.append((start, end))
        time.sleep(self.wait_s)
        if self.failures:
            self.failures -= 1
            raise RuntimeError("503 slow down")
        return self.content[start:end]


CONTENT = os.urandom(5000)


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.integers(0, 5100), st.integers(1, 300)), min_size=1, max_size=40),
    st.integers(1, 800),
    st.integers(1, 3000),
)
def test_any_reads_give_the_bytes(reads, read_ahead_bytes, max_cached_bytes):
    reader = RangeReader(
        Store(CONTENT), read_ahead_bytes=read_ahead_bytes, max_cached_bytes=max_cached_bytes
    )
    for offset, size in reads:
        assert reader.read("o", offset, size) == CONTENT[offset : offset + size]
        assert reader.cached_bytes <= max(max_cached_bytes, read_ahead_bytes, 300)
        known = [found for ranges in reader._by_path.values() for found in ranges]
        assert reader.cached_bytes == sum(found.stop - found.start for found in known)
        assert len(known) == len(reader._ranges)


def test_a_lane_that_wraps_does_not_read_twice():
    store = Store(CONTENT)
    reader = RangeReader(store, read_ahead_bytes=1000, max_cached_bytes=10**6)
    for offset in [*range(500, 1500, 100), *range(0, 500, 100)]:
        reader.read("o", offset, 100)
    assert store.asked == [(500, 1500), (0, 500)]


def test_threads_wait_for_one_request():
    store = Store(CONTENT, wait_s=0.2)
    reader = RangeReader(store, read_ahead_bytes=1000, max_cached_bytes=10**6)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: reader.read("o", 100 * number, 100), range(8)))
    assert found == [CONTENT[100 * number : 100 * number + 100] for number in range(8)]
    assert len(store.asked) <= 8 and (0, 1000) in store.asked


def test_a_failed_request_is_an_oserror_and_is_made_anew():
    store = Store(CONTENT, failures=1)
    reader = RangeReader(store, read_ahead_bytes=100, max_cached_bytes=10**6)
    with pytest.raises(OSError, match="503 slow down"):
        reader.read("o", 0, 10)
    assert reader.cached_bytes == 0
    assert reader.read("o", 0, 10) == CONTENT[:10]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [4])
def test_s3(local, workers, monkeypatch):
    """Against a real HTTP server that speaks S3."""
    server_module = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": f"http://{host}:{port}"})
        store = fsspec.filesystem("s3")
        store.mkdir("loader")
        store.put(f"{local.parent}/", "loader/data/", recursive=True)
        assert isinstance(open_storage("s3://loader/data"), RemoteStorage)
        found = read_batches("s3://loader/data/manifest.json", 12, num_workers=workers)
        assert all(equal(a, b) for a, b in zip(found, read_batches(local, 12)))
        store.rm("loader/data/shards/000001.tar")
        with pytest.raises(ManifestError, match="shards/000001.tar is missing"):
            open_dataset("s3://loader/data/manifest.json")
    finally:
        server.stop()
    assert threading.active_count() < 50
