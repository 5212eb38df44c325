"""Tars that cannot seek: each pass holds every sample, faults are counted, resumes start anew."""

from __future__ import annotations

import os
from collections import Counter

import pytest
import torch

from pipeline.config import DataConfig
from pipeline.data import LoaderError
from tests.pipeline.data.loading import IMAGE_SIZE, small_loader, take
from tests.pipeline.data.made_shards import make_samples, write_shards


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream")
    write_shards(folder, make_samples(80), per_shard=20)
    return folder / "shards"


def stream_of(urls, rank=0, world_size=1, batch_size=8, **config):
    config = DataConfig(stream=urls, prefetch_batches=2, **config)
    return small_loader(config, batch_size, rank, world_size)


def test_pipes_give_every_sample_of_a_pass(folder):
    loader = stream_of([f"pipe:cat {folder}/00000{{0..3}}.tar"])
    assert loader.num_samples == 0 and loader.fingerprint.startswith("stream-")
    batches = take(loader, 30)
    assert batches[0].images.shape == (8, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert batches[0].images.dtype == torch.uint8 and (batches[0].tokens[:, 0] == 49406).all()
    keys = [key for batch in batches for key in batch.keys]
    # Threads take from one queue, so samples near the end of a pass may change places with the
    # next one's: the multiset of three passes is exact up to what is in flight.
    counts = Counter(keys[:80])
    assert len(counts) >= 80 - 16 and len(Counter(keys)) == 80
    order = [int(key[1:]) for key in keys[:80]]
    assert order != sorted(order)


def test_ranks_read_different_tars(folder):
    urls = [f"{folder}/00000{{0..3}}.tar"]
    shares = [take(stream_of(urls, rank, 2, num_workers=1), 8) for rank in range(2)]
    keys = [{key for batch in share for key in batch.keys} for share in shares]
    assert not keys[0] & keys[1] and len(keys[0] | keys[1]) > 50


def test_a_tar_cut_short_and_bad_samples_are_counted(folder, tmp_path):
    tars = []
    for number in range(2):
        data = (folder / f"00000{number}.tar").read_bytes()
        tars.append(tmp_path / f"{number}.tar")
        tars[-1].write_bytes(data[: len(data) // 2] if number else data)
    loader = stream_of([str(tar) for tar in tars], max_bad_fraction=1.0)
    batches = take(loader, 20)
    keys = {key for batch in batches for key in batch.keys}
    assert {f"s{number:08d}" for number in range(20)} <= keys and len(keys) < 40
    assert loader.faults.num_bad and any(
        "1.tar" in shard for shard, _ in loader.faults.worst_shards()
    )


def test_bytes_that_are_no_images(tmp_path):
    samples = make_samples(16)
    samples[3].image = b"no image"
    samples[5].caption = None
    write_shards(tmp_path, samples, 16)
    loader = stream_of([f"{tmp_path}/shards/000000.tar"], max_bad_fraction=1.0)
    keys = {key for batch in take(loader, 20) for key in batch.keys}
    assert keys == {sample.key for sample in samples} - {"s00000003", "s00000005"}
    assert {line.split(" (")[0] for line in loader.faults.examples} >= {"no caption"}


def test_a_resumed_run_goes_on_with_another_pass_and_says_so(folder, capfd):
    urls = [f"{folder}/00000{{0..3}}.tar"]
    first = take(stream_of(urls, num_workers=1), 2)
    later = take(stream_of(urls, num_workers=1), 2, samples_seen=800)
    assert [b.keys for b in first] != [b.keys for b in later]
    assert "begins a new pass" in capfd.readouterr().err
    with stream_of(urls) as loader, pytest.raises(ValueError, match="not a multiple"):
        loader.batches(3)


def test_nothing_to_read_is_an_error_within_seconds(tmp_path):
    with pytest.raises(LoaderError, match="held no sample"):
        take(stream_of([f"{tmp_path}/none.tar"], max_bad_fraction=1.0), 1)
    with pytest.raises(LoaderError, match="1 tars for 2 ranks"):
        stream_of(["a.tar"], world_size=2)


def test_close_ends_the_reader(folder):
    loader = stream_of([f"{folder}/000000.tar"])
    iterator = loader.batches(0)
    next(iterator)
    thread = loader._reader._thread
    loader.close()
    thread.join(10)
    assert not thread.is_alive()
    with pytest.raises(LoaderError, match="closed"):
        for _ in range(10):
            next(iterator)
    assert os.path.isdir(folder)
