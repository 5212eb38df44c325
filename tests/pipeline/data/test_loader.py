"""The loader end to end, on shards written here: same batches for every world, faults told."""

from __future__ import annotations

import io
import os
import threading
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import xxhash
from PIL import Image

from data_tools.manifest import ManifestError, load_manifest, save_manifest
from pipeline.config import DataConfig
from pipeline.data import LoaderError, Tokenizer, build_train_loader
from pipeline.data.order import SampleOrder
from tests.pipeline.data.images import encode, synthetic_photo
from tests.pipeline.data.shards import jpeg, make_samples, write_shard, write_shards

IMAGE_SIZE = 16
CONTEXT_LENGTH = 24


def loader_of(manifest, global_batch_size=8, rank=0, world_size=1, seed=3, **config):
    return build_train_loader(
        DataConfig(manifest=str(manifest), **{"prefetch_batches": 2, **config}),
        image_size=IMAGE_SIZE,
        context_length=CONTEXT_LENGTH,
        global_batch_size=global_batch_size,
        rank=rank,
        world_size=world_size,
        seed=seed,
    )


def read_batches(manifest, count, samples_seen=0, **kwargs):
    with loader_of(manifest, **kwargs) as loader:
        iterator = loader.batches(samples_seen)
        return [next(iterator) for _ in range(count)]


def recording(function, calls):
    """`function`, which also notes its first arguments."""

    def wrapped(*args):
        calls.append(args[0])
        return function(*args)

    return wrapped


def equal(a, b):
    return (
        a.keys == b.keys
        and torch.equal(a.images, b.images)
        and torch.equal(a.tokens, b.tokens)
        and torch.equal(a.caption_ids, b.caption_ids)
        and a.num_bad == b.num_bad
    )


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
        first.close()
        pairs.append((None, next(second)))
    expected = read_batches(manifest, 14)
    for step, (a, b) in enumerate(pairs):
        assert a is None or equal(a, expected[step])
        assert equal(b, expected[10 + step])


def test_token_length_follows_the_longest_caption(tmp_path):
    samples = make_samples(6)
    for sample, num_words in zip(samples, [1, 2, 5, 6, 7, 100]):
        sample.caption = "a " * num_words
    path = write_shards(tmp_path, samples, 6)
    lengths = {}
    for batch in read_batches(path, 12, global_batch_size=1):
        lengths[batch.keys[0]] = batch.tokens.shape[1]
    assert list(dict(sorted(lengths.items())).values()) == [8, 8, 8, 8, 16, 24]


def test_token_zero_at_the_end_of_a_caption_is_not_cut_off(tmp_path):
    samples = make_samples(2)
    for sample in samples:
        sample.caption = "a b c d!¿!¿!¿"
    batch = read_batches(write_shards(tmp_path, samples, 2), 1, global_batch_size=2)[0]
    assert (batch.tokens == 49407).sum() == 2 and batch.tokens.shape[1] % 8 == 0


def test_equal_captions_have_equal_ids(tmp_path):
    samples = make_samples(4)
    samples[0].caption, samples[1].caption = "A  dog &amp; cat", "a dog & cat\n"
    batch = read_batches(write_shards(tmp_path, samples, 4), 1, global_batch_size=4)[0]
    ids = dict(zip(batch.keys, batch.caption_ids.tolist()))
    assert ids["s00000000"] == ids["s00000001"]
    assert len(set(ids.values())) == 3


def damage(samples):
    """Every kind of bad sample a shard can hold; returns their keys and reasons."""
    samples[3].image = b""
    samples[17].image = None
    samples[30].caption = None
    samples[31].caption = b"\xff\xfe\xff"
    samples[44].image = jpeg(44)[:-400]
    samples[45].image = b"\x00" * 500
    samples[60].caption = " \n "
    return {
        "s00000003": "zero bytes",
        "s00000017": "no image",
        "s00000030": "no caption",
        "s00000031": "utf-8",
        "s00000044": "cut short|ends within",
        "s00000045": "not an image",
        "s00000060": "empty caption",
    }


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    samples = make_samples(75)
    reasons = damage(samples)
    return write_shards(tmp_path_factory.mktemp("bad"), samples, per_shard=20), reasons


def test_bad_samples_are_replaced_counted_and_named(damaged):
    path, reasons = damaged
    with loader_of(path, max_bad_fraction=0.5) as loader:
        iterator = loader.batches(0)
        batches = [next(iterator) for _ in range(75)]  # 8 epochs exactly
        faults = loader.faults
    assert sum(batch.num_bad for batch in batches) == 8 * len(reasons) == faults.num_bad
    assert faults.num_read == 75 * 8
    keys = {key for batch in batches for key in batch.keys}
    assert keys == {f"s{number:08d}" for number in range(75)} - set(reasons)
    for key, reason in reasons.items():
        lines = [line for line in faults.examples if key in line]
        assert lines and all(reason.split("|")[0] in line or "shards/" in line for line in lines)
        shard = f"shards/{int(key[1:]) // 20:06d}.tar"
        assert all(shard in line for line in lines)
    assert dict(faults.worst_shards()) == {
        "shards/000000.tar": 16,
        "shards/000001.tar": 16,
        "shards/000002.tar": 16,
        "shards/000003.tar": 8,
    }


def test_replacement_is_the_next_of_the_lane_in_every_world(damaged):
    path, reasons = damaged
    whole = read_batches(path, 20, max_bad_fraction=0.5)
    order = SampleOrder(75, chunk_size=16, global_batch_size=8, seed=3)
    bad = {int(key[1:]) for key in reasons}
    for step, batch in enumerate(whole):
        for lane, key in enumerate(batch.keys):
            wanted = step
            while (sample := int(order.batch(8 * wanted)[lane])) in bad:
                wanted += 1
            assert key == f"s{sample:08d}"
    halves = [
        read_batches(path, 20, rank=rank, world_size=2, num_workers=3, max_bad_fraction=0.5)
        for rank in range(2)
    ]
    for batch, left, right in zip(whole, *halves):
        assert left.keys + right.keys == batch.keys
        assert left.num_bad + right.num_bad == batch.num_bad
        assert torch.equal(torch.cat([left.images, right.images]), batch.images)


def test_too_many_bad_samples_end_the_run(damaged):
    path, _ = damaged
    with loader_of(path, max_bad_fraction=0.001) as loader:
        with pytest.raises(LoaderError, match="max_bad_fraction=0.001") as caught:
            for _ in loader.batches(0):
                pass
    assert loader.faults.num_bad == 11  # 0.001 of 10,000 are borne
    assert "Worst shards: shards/00000" in str(caught.value) and "key s000000" in str(caught.value)


def test_zero_tolerance_ends_at_the_first(tmp_path):
    samples = make_samples(16)
    samples[5].image = b"no image at all"
    path = write_shards(tmp_path, samples, 16)
    with loader_of(path, max_bad_fraction=0.0) as loader:
        with pytest.raises(LoaderError, match="(?s)1 of .*not an image.*key s00000005"):
            for _ in loader.batches(0):
                pass


def test_good_oddities_are_used(tmp_path):
    """CMYK, grey, one pixel, PNG in a .jpg member: pictures, not faults."""
    photo = synthetic_photo(0, 40, 30)
    cmyk = encode_cmyk(photo)
    images = [cmyk, encode(photo[..., 0].copy()), encode(photo[:1, :1]), encode(photo, ".png")]
    path = write_shards(tmp_path, make_samples(4, images.__getitem__), 4)
    batches = read_batches(path, 3, global_batch_size=4, max_bad_fraction=0.0, crop_scale_min=1.0)
    assert sum(batch.num_bad for batch in batches) == 0
    by_key = dict(zip(batches[0].keys, batches[0].images.float()))
    assert (by_key["s00000000"] - by_key["s00000003"]).abs().mean() < 5
    assert by_key["s00000002"].std(dim=(1, 2)).max() == 0


def encode_cmyk(photo):
    file = io.BytesIO()
    Image.fromarray(photo).convert("CMYK").save(file, "JPEG", quality=95)
    return file.getvalue()


def test_a_shard_of_garbage_is_survived_if_allowed_and_named_if_not(tmp_path):
    path = write_shards(tmp_path, make_samples(60), per_shard=20)
    shard = load_manifest(path).shards[1]
    tar = tmp_path / shard.path
    tar.write_bytes(os.urandom(shard.num_bytes))
    batches = read_batches(path, 15, max_bad_fraction=1.0)
    assert all(int(key[1:]) // 20 != 1 for batch in batches for key in batch.keys)
    assert sum(batch.num_bad for batch in batches) == 40
    with loader_of(path) as loader, pytest.raises(
        LoaderError, match="shards/000001.tar .[0-9]+.\\."
    ):
        for _ in loader.batches(0):
            pass


def test_a_shard_cut_while_training_is_named(tmp_path):
    path = write_shards(tmp_path, make_samples(60), per_shard=20)
    with loader_of(path, prefetch_batches=1) as loader:
        iterator = loader.batches(0)
        next(iterator)
        os.truncate(tmp_path / "shards/000002.tar", 2000)
        with pytest.raises(LoaderError, match="shards/000002.tar.*\n.*shard ends .* bytes early"):
            for _ in range(100):
                next(iterator)


def test_missing_or_cut_shard_is_an_error_at_start(tmp_path):
    path = write_shards(tmp_path, make_samples(9), per_shard=3)
    os.truncate(tmp_path / "shards/000001.tar", 1000)
    os.unlink(tmp_path / "shards/000002.tar")
    with pytest.raises(ManifestError) as caught:
        loader_of(path)
    assert "shards/000001.tar has 1000 bytes" in str(caught.value)
    assert "shards/000002.tar is missing" in str(caught.value)


def test_empty_shard_is_nothing(tmp_path):
    path = write_shards(tmp_path, make_samples(10), per_shard=10)
    manifest = load_manifest(path)
    empty = write_shard(tmp_path, "shards/empty", [])
    with_empty = replace(manifest, shards=(empty, *manifest.shards, empty))
    save_manifest(with_empty, path)
    batches = read_batches(path, 5, global_batch_size=10)
    assert all(len(set(batch.keys)) == 10 for batch in batches)


def test_too_few_samples_name_both_numbers(manifest):
    with pytest.raises(LoaderError, match="75 samples.*global batch of 80.*75 at most"):
        loader_of(manifest, global_batch_size=80)


def test_missing_captions_are_an_error_at_start(tmp_path):
    samples = [replace(sample, caption=None) for sample in make_samples(30)]
    with pytest.raises(LoaderError, match="20 of 20 samples in shards/000000.tar have no caption"):
        loader_of(write_shards(tmp_path, samples, per_shard=20))


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
    loader = loader_of(manifest, num_workers=3)
    iterator = loader.batches(0)
    next(iterator)
    assert len(loader_threads()) == 3
    loader.close()
    assert not loader_threads()
    with pytest.raises(LoaderError, match="closed"):
        for _ in range(10):
            next(iterator)
    loader.close()  # twice is fine


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


def test_an_unexpected_error_in_a_thread_reaches_the_consumer(manifest, monkeypatch):
    """Not a fault of a sample but of the program: raised as it is, at once."""

    def broken(*args, **kwargs):
        raise RuntimeError("broken crop")

    monkeypatch.setattr("pipeline.data.sample.random_crop_box", broken)
    with loader_of(manifest) as loader, pytest.raises(RuntimeError, match="broken crop"):
        next(loader.batches(0))


def test_storage_that_does_not_answer_is_an_error(manifest, monkeypatch):
    monkeypatch.setattr("pipeline.data.loader._STALL_TIMEOUT_S", 1.0)
    release = threading.Event()
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda *args: release.wait(30) and real(*args))
    loader = loader_of(manifest)
    with pytest.raises(LoaderError, match="not one sample was read.*does the storage answer"):
        next(loader.batches(0))
    release.set()
    loader.close()


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
