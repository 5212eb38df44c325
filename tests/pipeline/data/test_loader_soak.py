"""Long and large: memory stays flat, and a run deep inside a huge data set starts at once."""

from __future__ import annotations

import gc
import os

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.dataset.manifest import INDEX, Manifest, save_manifest
from pipeline.data.order.sample_order import SampleOrder
from tests.pipeline.data.loading import loader_of, read_batches
from tests.pipeline.data.made_shards import make_samples, write_shard, write_shards


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_memory_is_flat_over_epochs(tmp_path, num_workers):
    """Of the trainer, and of its worker processes."""
    samples = make_samples(400)
    for number in range(0, 400, 40):
        samples[number].image = b"bad"
    path = write_shards(tmp_path, samples, per_shard=20)
    resident, descriptors = [], []
    others = psutil.Process().children()  # of the test run: a fork server, its resource tracker
    with loader_of(
        path, max_bad_fraction=1.0, global_batch_size=16, num_workers=num_workers
    ) as loader:
        children = [child for child in psutil.Process().children() if child not in others]
        processes = [psutil.Process(), *children]
        assert len(processes) == (1 if num_workers == 1 else 3)
        for step, _ in zip(range(400 // 16 * 60), loader.batches(0)):
            if (step + 1) % (400 // 16 * 10) == 0:  # every ten epochs
                gc.collect()
                resident.append([process.memory_info().rss for process in processes])
                descriptors.append([process.num_fds() for process in processes])
    told = [[f"{rss / 1e6:.1f}" for rss in each] for each in zip(*resident)]
    print("\nresident MB after every ten epochs, trainer and workers:", told)
    # A batch's buffer is a descriptor: one that waited for the garbage collector would show.
    assert all(len(set(counts[1:])) == 1 for counts in zip(*descriptors)), descriptors
    # A leak of one 16-pixel image a sample would be 30 MB, 15 in each of two workers; the allocator
    # alone moves by a few.
    assert all(last - second < 8e6 for second, last in zip(resident[1], resident[-1]))


def test_resume_deep_in_four_hundred_million_samples(tmp_path):
    """40,000 shards of 10,000 samples, all links to one: only the batch itself is read."""
    shard = write_shard(tmp_path, "0", make_samples(1))
    row = pq.read_table(tmp_path / shard.index_path).to_pylist()[0]
    columns = {name: np.full(10_000, row[name]) for name in INDEX.names if name != "key"}
    keys = [f"k{number}" for number in range(10_000)]
    pq.write_table(pa.table({"key": keys, **columns}, schema=INDEX), tmp_path / shard.index_path)
    shard = shard._replace(num_samples=10_000)
    links = [shard._replace(path=f"{number}.tar") for number in range(40_000)]
    for link in links[1:]:
        os.link(tmp_path / shard.path, tmp_path / link.path)
    save_manifest(Manifest(tmp_path, "test", tuple(links)), tmp_path / "manifest.json")
    batch = read_batches(tmp_path / "manifest.json", 1, samples_seen=1_000_000_000)[0]
    order = SampleOrder(400_000_000, chunk_size=16, global_batch_size=8, seed=3)
    expected = [f"k{number % 10_000}" for number in order.batch(1_000_000_000)]
    assert batch.keys == expected
