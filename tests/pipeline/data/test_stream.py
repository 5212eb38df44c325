"""Tars that cannot seek: each pass holds every sample, faults are counted, resumes start anew."""

from __future__ import annotations

import os
from collections import Counter

import pytest
import torch

from pipeline.config import DataConfig
from pipeline.data import LoaderError
from tests.pipeline.data.loading import IMAGE_SIZE, small_loader, take
from tests.pipeline.data.made_shards import jpeg, make_samples, write_shards


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


def test_a_tar_that_is_gone_after_the_start_is_a_fault_with_its_name(folder, tmp_path):
    tars = [tmp_path / name for name in ("0.tar", "1.tar")]
    for tar in tars:
        tar.write_bytes((folder / "000000.tar").read_bytes())
    loader = stream_of([str(tar) for tar in tars], max_bad_fraction=1.0, num_workers=1)
    tars[1].unlink()
    batches = take(loader, 40)  # several passes: the tar comes first in some of them
    assert len({key for batch in batches for key in batch.keys}) == 20
    assert loader.faults.num_bad and any(
        str(tars[1]) in shard for shard, _ in loader.faults.worst_shards()
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


def test_tars_that_are_not_there_are_named_at_the_start(folder, tmp_path):
    urls = [f"{folder}/000000.tar", f"{tmp_path}/gone.tar", f"file:{tmp_path}/lost.tar"]
    with pytest.raises(LoaderError) as caught:
        stream_of(urls)
    for name in ("gone.tar", "lost.tar"):
        assert f"{tmp_path}/{name}: No such file or directory (errno 2)" in str(caught.value)
    assert "2 of the tars" in str(caught.value) and "000000.tar" not in str(caught.value)
    with pytest.raises(LoaderError, match="1 tars for 2 ranks"):
        stream_of(["a.tar"], world_size=2)


def unusable(kind):
    samples = make_samples(6)
    for number, sample in enumerate(samples):
        if kind == "no picture":
            sample.image = b"<!doctype html><title>Sign in</title>"
        elif kind == "no text":
            sample.caption = [None, "", " \t", b"\xe9t\xe9", "\n", "\u00a0"][number]
        else:
            sample.image = jpeg(number)[:-300]
    return samples


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("kind", ["no picture", "no text", "cut"])
def test_a_stream_of_which_nothing_decodes_ends_after_a_pass(tmp_path, kind, workers):
    """Six bad samples are fewer than data.max_bad_fraction tolerates, and 1.0 tolerates all."""
    write_shards(tmp_path, unusable(kind), 6)
    tar = f"{tmp_path}/shards/000000.tar"
    for fraction in (0.001, 1.0):
        with pytest.raises(LoaderError) as caught:
            take(stream_of([tar], num_workers=workers, max_bad_fraction=fraction), 1)
        assert tar in str(caught.value) and "(key s0000000" in str(caught.value)
        if fraction == 1.0:
            assert "a whole pass over this rank's 1 tars" in str(caught.value)


def test_more_bad_samples_than_are_tolerated_end_the_run_before_the_first_batch(tmp_path):
    write_shards(tmp_path, [s for part in range(3) for s in _numbered(part)], 30)
    loader = stream_of([f"{tmp_path}/shards/000000.tar"], batch_size=16, num_workers=1)
    with pytest.raises(LoaderError, match="11 of [0-9]+ samples .* data.max_bad_fraction=0.001"):
        take(loader, 1)


def _numbered(part):
    samples = make_samples(10)
    for sample in samples:
        sample.key = f"{part}{sample.key}"
        sample.image = sample.image if part == 1 else b"RIFF"
    return samples


@pytest.mark.parametrize(
    "url",
    ["pipe:exit 3", "pipe:cat {0}/nowhere.tar", "pipe:echo '<html>Sign in</html>'", "pipe:true"],
)
def test_a_pipe_without_a_tar_is_named(tmp_path, url):
    url = url.format(tmp_path)
    with pytest.raises(LoaderError, match="a whole pass over") as caught:
        take(stream_of([url], max_bad_fraction=1.0), 1)
    assert url in str(caught.value)


def test_one_sample_among_four_threads_is_no_fault(tmp_path):
    """The end of a pass may be taken while its only sample is still being decoded."""
    write_shards(tmp_path, make_samples(1), 1)
    loader = stream_of([f"{tmp_path}/shards/000000.tar"], num_workers=4)
    assert {key for batch in take(loader, 40) for key in batch.keys} == {"s00000000"}


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
