"""Batches on the device are those on the host; on the CPU nothing is copied."""

from __future__ import annotations

import pytest
import torch

from pipeline.data.batches.device import DeviceMover
from tests.pipeline.data.loading import equal, loader_of, read_batches
from tests.pipeline.data.made_shards import make_samples, write_shards


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("good"), make_samples(75), per_shard=20)


def test_on_the_cpu_it_is_the_same_batch(manifest):
    batch = read_batches(manifest, 1)[0]
    mover = DeviceMover(torch.device("cpu"))
    assert not mover.moves and mover.finish(mover.start(batch)) is batch


def test_batches_taken_early_keep_their_order_and_faults(manifest, monkeypatch):
    """The path of a CUDA device, with a mover that copies to the CPU."""
    expected = read_batches(manifest, 12)
    monkeypatch.setattr(DeviceMover, "moves", property(lambda self: True))
    with loader_of(manifest, num_workers=3) as loader:
        for step, (batch, wanted) in enumerate(zip(loader.batches(0), expected)):
            assert equal(batch, wanted)
            assert loader.faults.num_read == 8 * (step + 1)


@pytest.mark.gpu
def test_on_cuda_the_values_are_the_same(manifest):
    expected = read_batches(manifest, 12)
    with loader_of(manifest) as loader:
        for batch, wanted in zip(loader.batches(0, torch.device("cuda")), expected):
            assert batch.images.is_cuda and batch.keys == wanted.keys
            # Work that is queued at once, on the stream that the copy must be waited for on.
            assert torch.equal((batch.images.int() + 1).cpu(), wanted.images.int() + 1)
            assert torch.equal(batch.tokens.cpu(), wanted.tokens)
            assert torch.equal(batch.caption_ids.cpu(), wanted.caption_ids)
