"""Epochs drawn by keep_probability: of one size, without repetition, each sample as often as its
probability says."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.dataset.manifest import Manifest, load_manifest
from pipeline.data import LoaderError
from pipeline.data.order.keep_probability import (
    KeepProbabilities,
    ResampledOrder,
    fixed_point,
    names_of,
    write_keep_probabilities,
)
from tests.pipeline.data.loading import equal, loader_of, read_batches
from tests.pipeline.data.made_shards import make_samples, write_shard, write_shards


class Drawn(KeepProbabilities):
    """Of given numbers instead of files."""

    def __init__(self, values):
        self._values = np.asarray(values, dtype=np.float32)
        blocks = [
            int(fixed_point(self._values[start : start + 1024]).sum())
            for start in range(0, len(values), 1024)
        ]
        self._sums = np.cumsum([0, *blocks], dtype=np.int64)
        self.total = int(self._sums[-1])
        self.num_kept = self.total // 2**32


def order_of(values, batch_size=1, seed=0, chunk_size=4):
    return ResampledOrder(
        Drawn(values), chunk_size=chunk_size, global_batch_size=batch_size, seed=seed
    )


PROBABILITIES = st.lists(
    st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0, 1e-6])), min_size=1, max_size=300
).filter(lambda values: sum(values) >= 1.001)


@given(PROBABILITIES, st.integers(0, 2**62), st.integers(0, 10**6))
def test_an_epoch_has_no_sample_twice_and_none_of_probability_zero(values, seed, epoch):
    order = order_of(values, seed=seed)
    size = order.num_samples
    assert size in (int(sum(values)), round(sum(values)))
    drawn = order.samples(np.arange(epoch * size, (epoch + 1) * size)).tolist()
    assert len(set(drawn)) == size and 0 <= min(drawn) and max(drawn) < len(values)
    assert all(values[sample] > 0 for sample in drawn)


def test_probability_one_is_every_epoch():
    order = order_of(np.ones(500))
    for epoch in range(3):
        drawn = order.samples(np.arange(500 * epoch, 500 * (epoch + 1)))
        assert sorted(drawn.tolist()) == list(range(500))


def test_samples_come_as_often_as_their_probability_says():
    """Over 400 epochs, 3000 samples: closer than 400 independent draws of each would be."""
    values = np.random.default_rng(0).random(3000)
    order = order_of(values, batch_size=64)
    size, epochs = order.num_samples, 400
    counts = np.bincount(order.samples(np.arange(size * epochs)), minlength=3000)
    expected = values * epochs * size / values.sum()
    assert np.abs(counts - expected).max() < 4 * np.sqrt(epochs * 0.25)
    independent = np.sqrt(epochs * values * (1 - values)).mean()
    assert np.abs(counts - expected).mean() < independent / 3


@settings(max_examples=30)
@given(PROBABILITIES, st.lists(st.integers(0, 10**9), min_size=1, max_size=20))
def test_a_position_does_not_depend_on_what_is_asked_with_it(values, positions):
    order = order_of(values)
    together = order.samples(np.array(positions)).tolist()
    assert together == [int(order.samples(np.array([position]))[0]) for position in positions]


def write(folder, probabilities, per_shard=20):
    samples = make_samples(len(probabilities))
    for sample, probability in zip(samples, probabilities):
        sample.info = {"keep_probability": probability}
    return write_shards(folder, samples, per_shard)


def test_end_to_end_from_the_json_of_samples(tmp_path):
    probabilities = [1.0 if number % 3 == 0 else 0.25 for number in range(90)]
    path = write(tmp_path, probabilities)
    with pytest.raises(LoaderError, match="pipeline.data.keep_probability"):
        loader_of(path, resample=True)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.data.keep_probability", str(path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    with loader_of(path, resample=True) as loader:
        assert loader.num_samples == 45  # 30 + 60 / 4
        assert loader.fingerprint != load_manifest(path).fingerprint
    batches = read_batches(path, 90, resample=True)  # 16 epochs
    keys = [key for batch in batches for key in batch.keys]
    for start in range(0, 45 * 16, 45):
        epoch = set(keys[start : start + 45])
        assert len(epoch) == 45
        assert epoch >= {f"s{number:08d}" for number in range(0, 90, 3)}
    rare = [keys.count(f"s{number:08d}") for number in range(90) if number % 3]
    assert min(rare) >= 2 and max(rare) <= 6
    assert all(
        equal(a, b)
        for a, b in zip(read_batches(path, 3, samples_seen=8 * 50, resample=True), batches[50:])
    )


def test_a_column_of_the_index_is_preferred(tmp_path):
    manifest = load_manifest(write(tmp_path, [0.5] * 20))
    index = manifest.index_path(manifest.shards[0])
    table = pq.read_table(index)
    column = pa.array(np.linspace(0, 1, 20, dtype=np.float32))
    pq.write_table(table.append_column("keep_probability", column), index)
    written = np.load(write_keep_probabilities(manifest), allow_pickle=False)
    assert np.array_equal(written, np.linspace(0, 1, 20, dtype=np.float32))


def test_samples_without_a_probability_are_told(tmp_path):
    manifest = load_manifest(write_shards(tmp_path, make_samples(5), 5))
    with pytest.raises(LoaderError, match="sample s00000000 has no keep_probability"):
        write_keep_probabilities(manifest)
    assert not (tmp_path / names_of(manifest)[0]).exists()


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_impossible_probabilities_are_told(tmp_path, value):
    sample = make_samples(1)[0]
    sample.info = {"keep_probability": value}
    shard = write_shard(tmp_path, "0", [sample])
    assert json.loads(json.dumps(sample.info))
    with pytest.raises(LoaderError, match="row 0 is .*must be 0 to 1"):
        write_keep_probabilities(Manifest(tmp_path, "test", (shard,)))


def test_too_few_kept_samples_are_told(tmp_path):
    path = write(tmp_path, [0.1] * 40)
    write_keep_probabilities(load_manifest(path))
    with pytest.raises(LoaderError, match="4 samples in an epoch .*keep_probability.*batch of 8"):
        loader_of(path, resample=True)
