"""A run that goes on with other ranks and workers: no sample of an epoch twice, none left out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.pipeline.data.loading import read_batches
from tests.pipeline.data.made_shards import make_samples, write_shards

NUM_SAMPLES, BATCH = 50, 12


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data"), make_samples(NUM_SAMPLES), 7)


def keys_of(manifest: Path, starts: list[tuple[int, int]]) -> list[str]:
    """The keys of a run that is begun anew for each (world size, number of batches), in order."""
    keys: list[str] = []
    for world_size, count in starts:
        ranks = [
            read_batches(
                manifest,
                count,
                samples_seen=len(keys),
                global_batch_size=BATCH,
                rank=rank,
                world_size=world_size,
                chunk_size=3,
            )
            for rank in range(world_size)
        ]
        for batches in zip(*ranks):
            keys += [key for batch in batches for key in batch.keys]
    return keys


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(st.sampled_from([1, 2, 3, 4, 6, 12]), st.integers(1, 3)), min_size=2, max_size=5
    )
)
def test_each_epoch_has_each_sample_once_whatever_ranks_took_it(
    manifest: Path, starts: list[tuple[int, int]]
) -> None:
    keys = keys_of(manifest, starts)
    undisturbed = [
        key for batch in read_batches(manifest, len(keys) // BATCH, global_batch_size=BATCH,
                                      chunk_size=3) for key in batch.keys
    ]  # fmt: skip
    assert keys == undisturbed
    for first in range(0, len(keys), NUM_SAMPLES):
        epoch = Counter(keys[first : first + NUM_SAMPLES])
        assert max(epoch.values()) == 1
        assert len(epoch) == min(NUM_SAMPLES, len(keys) - first)
