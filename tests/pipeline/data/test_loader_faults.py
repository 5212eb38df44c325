"""Damaged data: replaced, counted and named, or the end of the run; never silence, never a hang."""

from __future__ import annotations

import io
import os
import threading
from dataclasses import replace

import pytest
import torch
from PIL import Image

from data_tools.dataset.manifest import ManifestError, load_manifest, save_manifest
from pipeline.data import LoaderError
from pipeline.data.order.sample_order import SampleOrder
from tests.pipeline.data.images import encode, synthetic_photo
from tests.pipeline.data.loading import loader_of, read_batches
from tests.pipeline.data.made_shards import jpeg, make_samples, write_shard, write_shards


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("good"), make_samples(75), per_shard=20)


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
    with (
        loader_of(path) as loader,
        pytest.raises(LoaderError, match="shards/000001.tar .[0-9]+.\\."),
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
    first, last = (write_shard(tmp_path, f"shards/empty{number}", []) for number in range(2))
    with_empty = replace(manifest, shards=(first, *manifest.shards, last))
    save_manifest(with_empty, path)
    batches = read_batches(path, 5, global_batch_size=10)
    assert all(len(set(batch.keys)) == 10 for batch in batches)


def test_missing_captions_are_an_error_at_start(tmp_path):
    samples = [replace(sample, caption=None) for sample in make_samples(30)]
    with pytest.raises(LoaderError, match="20 of 20 samples in shards/000000.tar have no caption"):
        loader_of(write_shards(tmp_path, samples, per_shard=20))


def test_an_unexpected_error_in_a_thread_reaches_the_consumer(manifest, monkeypatch):
    """Not a fault of a sample but of the program: raised as it is, at once."""

    def broken(*args, **kwargs):
        raise RuntimeError("broken crop")

    monkeypatch.setattr("pipeline.data.samples.sample.random_crop_box", broken)
    with loader_of(manifest) as loader, pytest.raises(RuntimeError, match="broken crop"):
        next(loader.batches(0))


def test_storage_that_does_not_answer_is_an_error(manifest, monkeypatch):
    monkeypatch.setattr("pipeline.data.batches.prefetch.STALL_TIMEOUT_S", 1.0)
    release = threading.Event()
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda *args: release.wait(30) and real(*args))
    loader = loader_of(manifest)
    with pytest.raises(LoaderError, match="not one sample was read.*does the storage answer"):
        next(loader.batches(0))
    release.set()
    loader.close()


def test_a_key_of_a_stranger_does_not_reach_the_terminal(tmp_path, capsys):
    samples = make_samples(16)
    samples[3].key, samples[3].image = "\x1b]0;title\x07\u202e", b"<html>"
    path = write_shards(tmp_path, samples, 16)
    read_batches(path, 2, max_bad_fraction=1.0)
    printed = capsys.readouterr().err
    assert printed.replace("\n", "").isprintable()
    assert "OpenCV can decode: an HTML or XML page (key \\x1b]0;title\\x07\\u202e" in printed
