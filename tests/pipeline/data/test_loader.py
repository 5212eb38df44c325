"""The loader end to end: the same batches for every world and after every resume."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import xxhash

from data_tools.dataset.manifest import load_manifest
from pipeline.data import LoaderError, Tokenizer
from pipeline.data.order.sample_order import SampleOrder
from tests.pipeline.data.images import encode, synthetic_photo
from tests.pipeline.data.loading import CONTEXT_LENGTH, equal, loader_of, read_batches
from tests.pipeline.data.made_shards import make_samples, write_shards


def recording(function, calls):
    """`function`, which also notes its first arguments."""

    def wrapped(*args):
        calls.append(args[0])
        return function(*args)

    return wrapped


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("good"), make_samples(75), per_shard=20)


def test_a_batch_is_what_the_contract_says(manifest):
    batch = read_batches(manifest, 1)[0]
    assert batch.images.dtype == torch.uint8 and batch.images.shape == (8, 3, 16, 16)
    assert batch.images.is_contiguous()
    assert batch.tokens.dtype == torch.int64 and batch.tokens.shape == (8, 16)
    assert batch.caption_ids.dtype == torch.int64 and batch.num_bad == 0
    captions = [f"a photo of thing number {int(key[1:])}" for key in batch.keys]
    expected = Tokenizer(CONTEXT_LENGTH)(captions)
    assert torch.equal(batch.tokens, expected[:, :16]) and not expected[:, 16:].any()
    ids = np.array(
        [xxhash.xxh64_intdigest(caption.encode()) for caption in captions], dtype=np.uint64
    )
    assert batch.caption_ids.tolist() == ids.view(np.int64).tolist()


def test_keys_follow_the_order(manifest):
    batches = read_batches(manifest, 10)
    order = SampleOrder(75, chunk_size=16, global_batch_size=8, seed=3)
    for step, batch in enumerate(batches):
        assert batch.keys == [f"s{number:08d}" for number in order.batch(8 * step)]
    keys = [key for batch in batches for key in batch.keys]
    assert len(set(keys[:75])) == 75


def test_colours_and_place_of_pixels(tmp_path):
    """Red left, blue right: neither channels nor axes are swapped on the way."""
    picture = np.zeros((32, 32, 3), dtype=np.uint8)
    picture[:, :16, 0] = picture[:, 16:, 2] = 255
    samples = make_samples(4, lambda number: encode(picture, ".png"))
    batch = read_batches(write_shards(tmp_path, samples, 4), 1, global_batch_size=4)[0]
    image = batch.images[0].int()
    assert image[0, 4, 1] > 250 and image[2, 4, 1] < 5 and image[1].max() < 5
    assert image[2, 4, 14] > 250 and image[0, 4, 14] < 5


@pytest.mark.parametrize("world_size, num_workers", [(1, 4), (2, 1), (4, 2), (8, 3)])
def test_ranks_and_workers_change_nothing(manifest, world_size, num_workers):
    expected = read_batches(manifest, 12, num_workers=1)
    shares = [
        read_batches(manifest, 12, rank=rank, world_size=world_size, num_workers=num_workers)
        for rank in range(world_size)
    ]
    for step, whole in enumerate(expected):
        parts = [share[step] for share in shares]
        assert [key for part in parts for key in part.keys] == whole.keys
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert torch.equal(torch.cat([part.caption_ids for part in parts]), whole.caption_ids)


@pytest.mark.parametrize("step", [1, 7, 9, 10, 23])
def test_resumed_run_sees_the_same_keys_and_pixels(manifest, step):
    """Cut at any step, before and after epoch borders (75 samples, batches of 8)."""
    whole = read_batches(manifest, step + 4)
    with loader_of(manifest) as loader:
        iterator = loader.batches(0)
        for _ in range(step):
            next(iterator)
        # Killed here, with batches in the making.
    resumed = read_batches(manifest, 4, samples_seen=8 * step, num_workers=3)
    assert all(equal(a, b) for a, b in zip(resumed, whole[step:]))


def test_resume_reads_nothing_before_its_position(manifest, monkeypatch):
    read: list[int] = []
    monkeypatch.setattr(os, "pread", recording(os.pread, read))
    read_batches(manifest, 1, samples_seen=8 * 100_000_000, prefetch_batches=1)
    assert len(read) <= 16


def test_crops_differ_between_epochs_and_seeds(tmp_path):
    samples = make_samples(8, lambda number: encode(synthetic_photo(number, 64, 64)))
    path = write_shards(tmp_path, samples, 8)

    def pixels(seed, epoch):
        batch = read_batches(path, 1, samples_seen=8 * epoch, seed=seed, crop_scale_min=0.3)[0]
        return dict(zip(batch.keys, batch.images))

    first, second, other_seed = pixels(0, 0), pixels(0, 1), pixels(1, 0)
    for key in first:
        assert not torch.equal(first[key], second[key])
        assert not torch.equal(first[key], other_seed[key])


def test_iterators_of_one_loader_do_not_disturb_each_other(manifest):
    with loader_of(manifest) as loader:
        first, second = loader.batches(0), loader.batches(80)
        pairs = [(next(first), next(second)) for _ in range(3)]
        del first  # its batches in the making are given up
        last = next(second)
    expected = read_batches(manifest, 14)
    for step, (a, b) in enumerate(pairs):
        assert equal(a, expected[step]) and equal(b, expected[10 + step])
    assert equal(last, expected[13])


def test_token_length_follows_the_longest_caption(tmp_path):
    samples = make_samples(6)
    for sample, num_words in zip(samples, [1, 2, 5, 6, 7, 100]):
        sample.caption = "a " * num_words
    path = write_shards(tmp_path, samples, 6)
    lengths = {}
    for batch in read_batches(path, 12, global_batch_size=1):
        lengths[batch.keys[0]] = batch.tokens.shape[1]
    assert list(dict(sorted(lengths.items())).values()) == [8, 8, 8, 8, 16, 24]


def test_token_zero_inside_a_caption_does_not_shorten_it(tmp_path):
    samples = make_samples(2)
    for sample in samples:
        sample.caption = "a a a a a !¿"  # nine tokens, eight of them not zero
    batch = read_batches(write_shards(tmp_path, samples, 2), 1, global_batch_size=2)[0]
    assert batch.tokens.shape == (2, 16)
    assert (batch.tokens == 49407).sum() == 2 and (batch.tokens[0, :9] == 0).sum() == 1


def test_equal_captions_have_equal_ids(tmp_path):
    samples = make_samples(4)
    samples[0].caption, samples[1].caption = "A  dog &amp; cat", "a dog & cat\n"
    batch = read_batches(write_shards(tmp_path, samples, 4), 1, global_batch_size=4)[0]
    ids = dict(zip(batch.keys, batch.caption_ids.tolist()))
    assert ids["s00000000"] == ids["s00000001"]
    assert len(set(ids.values())) == 3


def test_too_few_samples_name_both_numbers(manifest):
    with pytest.raises(LoaderError, match="75 samples.*global batch of 80.*75 at most"):
        loader_of(manifest, global_batch_size=80)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"world_size": 3}, "global_batch_size 8 must be a multiple of world_size 3"),
        ({"world_size": 2, "rank": 2}, "rank 2"),
        ({"num_workers": 0}, "data.num_workers .0."),
        ({"prefetch_batches": 0}, "prefetch_batches .0."),
    ],
)
def test_sizes_that_do_not_fit_are_refused(manifest, kwargs, message):
    with pytest.raises(LoaderError, match=message):
        loader_of(manifest, **kwargs)


def test_a_position_off_the_batches_is_refused_at_once(manifest):
    with loader_of(manifest) as loader, pytest.raises(ValueError, match="not a multiple"):
        loader.batches(12)


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_close_ends_the_threads_and_later_batches_raise(manifest):
    loader = loader_of(manifest)
    iterator = loader.batches(0)
    next(iterator)
    assert len(loader_threads()) == 1
    loader.close()
    assert not loader_threads()
    with pytest.raises(LoaderError, match="closed"):
        for _ in range(10):
            next(iterator)
    loader.close()  # twice is fine


@pytest.mark.slow
def test_a_loader_that_is_not_closed_does_not_break_the_exit(manifest):
    program = (
        "import sys; from tests.pipeline.data.loading import loader_of\n"
        "batches = loader_of(sys.argv[1], prefetch_batches=200).batches(0); next(batches)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(manifest)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_close_wakes_a_waiting_consumer(manifest, monkeypatch):
    hold = threading.Event()
    real = cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda *args: hold.wait(30) and real(*args))
    loader = loader_of(manifest)
    errors = []

    def consume():
        try:
            next(loader.batches(0))
        except LoaderError as error:
            errors.append(error)

    consumer = threading.Thread(target=consume)
    consumer.start()
    time.sleep(0.2)
    closer = threading.Thread(target=loader.close)
    closer.start()
    consumer.join(5)
    assert errors and not consumer.is_alive()
    hold.set()
    closer.join(10)
    assert not closer.is_alive()


def test_memory_ahead_is_bounded(manifest, monkeypatch):
    """The threads stop at prefetch_batches; they do not run through the data set."""
    with loader_of(manifest, prefetch_batches=2) as loader:
        iterator = loader.batches(0)
        next(iterator)
        time.sleep(0.3)
        assert loader.faults.num_read == 8
        assert loader._pool._tasks.empty()
        # Taken 1, and 2 more wait: the next call gives the second without reading a fourth first.
        started: list[int] = []
        monkeypatch.setattr(loader._order, "batch", recording(loader._order.batch, started))
        next(iterator)
    assert started == [24]


def test_fingerprint_and_size_are_the_manifests(manifest):
    with loader_of(manifest) as loader:
        assert loader.num_samples == 75
        assert loader.fingerprint == load_manifest(manifest).fingerprint
