"""Reading by index: the same keys and bytes as webdataset, few descriptors, faults named."""

from __future__ import annotations

import os
import resource
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.dataset.manifest import INDEX, Manifest, load_manifest, save_manifest
from pipeline.data.faults import LoaderError, SampleError
from pipeline.data.shards.index import SampleIndex, SampleLocation
from pipeline.data.shards.reader import FilePool, ShardReader
from tests.pipeline.data.made_shards import Sample, make_samples, write_shard, write_shards


def small_samples(count):
    return make_samples(count, lambda number: bytes([number % 251]) * (1 + number % 700))


def test_same_keys_and_bytes_as_webdataset(tmp_path):
    manifest = load_manifest(write_shards(tmp_path, make_samples(23), per_shard=7))
    paths = [str(manifest.shard_path(shard)) for shard in manifest.shards]
    theirs = list(webdataset.WebDataset(paths, shardshuffle=False, empty_check=False))
    index, reader = SampleIndex(manifest), ShardReader()
    assert len(theirs) == manifest.num_samples
    for number, sample in enumerate(theirs):
        location = index.locate(number)
        image, text = reader.read(location)
        assert (location.key, image, text) == (sample["__key__"], sample["jpg"], sample["txt"])
    reader.close()


@settings(max_examples=20)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any), st.data())
def test_shards_of_any_size_empty_ones_included(tmp_path_factory, sizes, data):
    folder = tmp_path_factory.mktemp("shards")
    samples = small_samples(sum(sizes))
    ends = np.cumsum(sizes).tolist()
    shards = tuple(
        write_shard(folder, f"{number}", samples[end - size : end])
        for number, (size, end) in enumerate(zip(sizes, ends))
    )
    index = SampleIndex(Manifest(folder, "test", shards))
    for number in data.draw(st.permutations(range(len(samples)))):
        assert index.locate(number).key == samples[number].key


@pytest.mark.parametrize("row_group_size", [100, 700, 1024, 1500, 10_000])
def test_blocks_of_a_long_index(tmp_path, row_group_size):
    """However the index is cut into row groups, any row is found, and what is kept is bounded."""
    num_rows = 5000
    shard = write_shard(tmp_path, "0", small_samples(1))
    numbers = np.arange(num_rows)
    columns = {name: numbers for name in INDEX.names if name != "key"}
    table = pa.table({"key": [f"k{row}" for row in range(num_rows)], **columns}, schema=INDEX)
    pq.write_table(table, tmp_path / shard.index_path, row_group_size=row_group_size)
    shard = shard._replace(num_samples=num_rows, num_bytes=10**6)
    index = SampleIndex(Manifest(tmp_path, "test", (shard,)))
    for row in [*range(0, num_rows, 97), num_rows - 1, 1023, 1024]:
        location = index.locate(row)
        assert (location.key, location.image_offset, location.text_size) == (f"k{row}", row, row)


def test_kept_blocks_are_bounded(tmp_path):
    manifest = load_manifest(write_shards(tmp_path, small_samples(40), per_shard=4))
    index = SampleIndex(manifest, max_blocks=3)
    for _ in range(2):
        for number in range(40):
            assert index.locate(number).key == f"s{number:08d}"
    assert len(index._blocks) == 3


def test_index_that_does_not_fit_its_shard_is_a_sample_error(tmp_path):
    path = write_shards(tmp_path, small_samples(6), per_shard=3)
    manifest = load_manifest(path)
    index_path = manifest.index_path(manifest.shards[1])
    table = pq.read_table(index_path)
    pq.write_table(table.slice(0, 2), index_path)
    with pytest.raises(SampleError, match="2 rows, the manifest says 3.*shards/000001.tar"):
        SampleIndex(manifest).locate(4)
    index_path.write_bytes(b"PAR1 rubbish")
    with pytest.raises(SampleError, match="000001.index.parquet is not usable"):
        SampleIndex(manifest).locate(4)
    shifted = table.set_column(1, "image_offset", pa.array([10**9] * 3, pa.int64()))
    pq.write_table(shifted, index_path)
    with pytest.raises(SampleError, match="past the shard's end.*key s00000004"):
        SampleIndex(manifest).locate(4)
    assert SampleIndex(manifest).locate(0).key == "s00000000"


def test_first_shard_without_captions_is_refused(tmp_path):
    samples = [replace(sample, caption=None) for sample in small_samples(5)]
    manifest = load_manifest(write_shards(tmp_path, samples, per_shard=3))
    with pytest.raises(LoaderError, match="3 of 3 samples in shards/000000.tar have no caption"):
        SampleIndex(manifest).check_first_shard(0.5)


def test_missing_members_are_told(tmp_path):
    samples = small_samples(3)
    samples[0].image = None
    samples[1].caption = None
    samples[2].image = b""
    manifest = load_manifest(write_shards(tmp_path, samples, per_shard=3))
    index, reader = SampleIndex(manifest), ShardReader()
    for number, reason in enumerate(["no image", "no caption", "image of zero bytes"]):
        with pytest.raises(SampleError, match=f"{reason} .key s0000000{number}, shard shards/"):
            reader.read(index.locate(number))


def test_shard_cut_after_the_start_is_told(tmp_path):
    manifest = load_manifest(write_shards(tmp_path, small_samples(5), per_shard=5))
    index, reader = SampleIndex(manifest), ShardReader()
    location = index.locate(3)
    os.truncate(location.path, location.image_offset + 2)
    with pytest.raises(SampleError, match="shard ends .* bytes early") as caught:
        reader.read(location)
    assert (caught.value.key, caught.value.shard) == ("s00000003", "shards/000000.tar")
    assert caught.value.offset == location.image_offset
    assert reader.read(index.locate(2))[0] == bytes([2]) * 3


def test_shard_that_vanishes_is_told(tmp_path):
    manifest = load_manifest(write_shards(tmp_path, small_samples(2), per_shard=2))
    location = SampleIndex(manifest).locate(0)
    os.unlink(location.path)
    with pytest.raises(SampleError, match="No such file.*key s00000000"):
        ShardReader().read(location)


def test_a_passing_error_is_retried(tmp_path, monkeypatch):
    """A stale handle, as network file systems give after a failover: opened anew, read again."""
    manifest = load_manifest(write_shards(tmp_path, small_samples(2), per_shard=2))
    location = SampleIndex(manifest).locate(1)
    reader = ShardReader()
    real, failures = os.pread, iter([True, True])

    def flaky(descriptor, size, offset):
        if next(failures, False):
            raise OSError(116, "Stale file handle")
        return real(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", flaky)
    assert reader.read(location)[0] == bytes([1]) * 2


def test_text_far_from_its_image(tmp_path):
    """Two reads instead of one; the gap is not read."""
    path = tmp_path / "far.tar"
    with path.open("wb") as file:
        file.write(b"image")
        file.seek(10_000_000)
        file.write(b"text")
    far = SampleLocation("k", "far.tar", str(path), 0, 5, 10_000_000, 4)
    swapped = SampleLocation("k", "far.tar", str(path), 10_000_000, 4, 0, 5)
    reader = ShardReader()
    assert reader.read(far) == (b"image", b"text")
    assert reader.read(swapped) == (b"text", b"image")


@settings(max_examples=50)
@given(
    st.binary(min_size=1, max_size=50),
    st.binary(min_size=1, max_size=50),
    st.integers(0, 40_000),
    st.booleans(),
)
def test_any_layout_of_image_and_text(tmp_path_factory, image, text, gap, text_first):
    path = tmp_path_factory.mktemp("layout") / "a.tar"
    first, second = (text, image) if text_first else (image, text)
    path.write_bytes(b"head" + first + b"\x07" * gap + second + b"tail")
    starts = (4, 4 + len(first) + gap)
    image_start, text_start = starts[::-1] if text_first else starts
    location = SampleLocation("k", "a", str(path), image_start, len(image), text_start, len(text))
    assert ShardReader().read(location) == (image, text)


def num_descriptors():
    return len(os.listdir("/proc/self/fd"))


def test_descriptors_are_bounded_and_closed(tmp_path):
    before = num_descriptors()
    files = FilePool(max_open=4)
    paths = [tmp_path / str(number) for number in range(20)]
    for path in paths:
        path.write_bytes(path.name.encode())
    for path in paths * 2:
        with files.open(str(path)) as descriptor:
            assert os.pread(descriptor, 10, 0).decode() == path.name
    assert files.num_open == 4 and num_descriptors() == before + 4
    with files.open(str(paths[0])) as descriptor:
        for path in paths[1:]:
            with files.open(str(path)):
                pass
        assert os.pread(descriptor, 10, 0) == b"0"  # in use, so not closed by the others
        files.close()
        assert os.pread(descriptor, 10, 0) == b"0"
    assert num_descriptors() == before


def test_threads_never_read_another_file(tmp_path):
    """With one file kept open among many, a descriptor closed too early would be reused at once."""
    files = FilePool(max_open=1)
    paths = [tmp_path / str(number) for number in range(8)]
    for path in paths:
        path.write_bytes(path.name.encode() * 100)
    wrong = []

    def read(seed):
        rng = np.random.default_rng(seed)
        for number in rng.integers(0, 8, 1500):
            with files.open(str(paths[number])) as descriptor:
                if os.pread(descriptor, 1000, 0) != str(number).encode() * 100:
                    wrong.append(number)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    files.close()


def test_default_number_of_files_respects_the_limit(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 256))
    assert FilePool()._max_open == 64


def test_empty_caption_file_is_told(tmp_path):
    manifest = load_manifest(write_shards(tmp_path, [Sample("a", b"x", "")], per_shard=1))
    with pytest.raises(SampleError, match="caption of zero bytes"):
        ShardReader().read(SampleIndex(manifest).locate(0))


def test_manifest_is_what_names_a_truncated_shard(tmp_path):
    path = write_shards(tmp_path, small_samples(4), per_shard=2)
    manifest = load_manifest(path)
    save_manifest(manifest, path)
    os.truncate(manifest.shard_path(manifest.shards[1]), 700)
    with pytest.raises(ValueError, match="000001.tar has 700 bytes"):
        load_manifest(Path(path))
