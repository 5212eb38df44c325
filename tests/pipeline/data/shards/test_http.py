"""HTTP servers that answer wrongly: named with their URL and what they did, never wrong pixels."""

from __future__ import annotations

import pickle
import socket
from pathlib import Path

import pytest

from data_tools.dataset.manifest import ManifestError
from pipeline.data import LoaderError
from pipeline.data.shards import reader as sample_reader
from pipeline.data.shards.dataset import open_dataset
from pipeline.data.shards.storage import RangeReader, open_storage
from pipeline.data.shards.wrong_answer import WrongAnswer
from tests.pipeline.data.loading import equal, loader_of, read_batches, take
from tests.pipeline.data.made_shards import make_samples, write_shards
from tests.pipeline.data.shards.http_store import serving
from tests.pipeline.data.test_stream import stream_of


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("good"), make_samples(75), per_shard=20)


@pytest.fixture
def store(local):
    with serving(local.parent) as store:
        yield store


@pytest.mark.parametrize("faulty", ["", "no head"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_that_knows_range_gives_the_batches_of_a_folder(local, store, faulty, workers):
    store.faulty = faulty
    found = read_batches(f"{store.url}/manifest.json", 20, num_workers=workers)
    assert all(equal(a, b) for a, b in zip(found, read_batches(local, 20), strict=True))


WRONG = {
    "ignores range": "ignores Range and sends the whole file of [0-9]+ bytes",
    "other range": "asked for bytes .* sends 'bytes ",
    "longer range": "asked for bytes .* sends 'bytes ",
    "shorter range": "asked for bytes .* sends 'bytes ",
    "wrong total": "has [0-9]+ bytes by Content-Range and [0-9]+ by an earlier answer",
    "total below": "asked for bytes .* sends 'bytes ",
    "no content range": "Content-Range '', so it is not known which",
    "odd content range": "Content-Range 'pages 1-2/3', so it is not known which",
    "gzip": "the server compresses the range with gzip",
    "short body": "the answer ends (before its stated length|after)",
    "long body": "sends more than the [0-9]+ bytes that it announced",
    "login": "answers 200 with an HTML page in place of the file: a login",
    "login redirect": "with an HTML page at http://127.0.0.1:[0-9]+/sign-in in place",
    "401": "answers 401 .*access is not allowed",
    "403": "answers 403 .*access is not allowed",
    "416": "answers 416 .*the file is shorter",
    "429": "answers 429 .*Retry-After: 7",
    "500": "answers 500",
    "503": "answers 503 .*Retry-After: 7",
}


@pytest.mark.parametrize("faulty", WRONG)
@pytest.mark.parametrize("suffix", [".tar", ".index.parquet"])
def test_a_wrong_answer_is_told_at_the_start(local, store, faulty, suffix):
    if faulty in ("ignores range", "longer range") and suffix == ".index.parquet":
        pytest.skip("the small index is asked for whole, and comes whole")
    store.faulty, store.suffix = faulty, suffix
    with pytest.raises((ManifestError, LoaderError), match=WRONG[faulty]) as caught:
        loader_of(f"{store.url}/manifest.json").close()
    assert f"{store.url}/shards/" in str(caught.value)
    assert "ack the data set again" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("faulty", [*WRONG, "404"])
def test_a_wrong_answer_in_a_run_ends_it_and_gives_no_wrong_pixels(
    local, store, faulty, monkeypatch
):
    monkeypatch.setattr(sample_reader, "_RETRY_AFTER_S", (0.01, 0.02))
    right = read_batches(local, 60, chunk_size=2)
    told = WRONG.get(faulty, "answers 404")
    with loader_of(f"{store.url}/manifest.json", prefetch_batches=1, chunk_size=2) as loader:
        iterator = loader.batches(0)
        assert equal(next(iterator), right[0])
        store.faulty = faulty
        with pytest.raises(LoaderError, match=told) as caught:
            for number in range(1, 60):
                batch = next(iterator)
                assert batch.num_bad or equal(batch, right[number])
        assert store.url in str(caught.value)


def test_no_more_is_read_than_was_asked_for(tmp_path):
    """Of 40 MB a server sends before it sees that nobody listens what the sockets' buffers hold."""
    (tmp_path / "large.tar").write_bytes(bytes(40 << 20))
    with serving(tmp_path) as store:
        store.faulty = "ignores range"
        reader = open_storage(store.url).reader(10_000, 4)
        assert isinstance(reader, RangeReader)
        for _ in range(3):
            with pytest.raises(WrongAnswer, match="ignores Range"):
                reader.read(f"{store.url}/large.tar", 5000, 1000)
        assert reader.cached_bytes == 0
        assert store.num_sent < 30 << 20


def test_a_small_file_sent_whole_is_taken(tmp_path):
    """A range that covers the file may be answered with the file (RFC 9110, 14.2)."""
    (tmp_path / "small.tar").write_bytes(b"0123456789")
    with serving(tmp_path) as store:
        store.faulty = "ignores range"
        reader = open_storage(store.url).reader(100, 4)
        assert reader.read(f"{store.url}/small.tar", 0, 10) == b"0123456789"
        reader.close()
        with pytest.raises(WrongAnswer):
            reader.read(f"{store.url}/small.tar", 2, 5)


MANIFEST = {
    "login": "is not a manifest of format 1: it is an HTML or XML page",
    "login redirect": "is not a manifest of format 1: it is an HTML or XML page",
    "403": "cannot be read: .*answers 403",
    "404": "no manifest at",
    "429": "cannot be read: .*answers 429",
    "503": "cannot be read: .*answers 503",
}


@pytest.mark.parametrize("faulty", MANIFEST)
def test_a_manifest_that_cannot_be_had(store, faulty):
    store.faulty, store.suffix = faulty, ".json"
    with pytest.raises(ManifestError, match=MANIFEST[faulty]) as caught:
        open_dataset(f"{store.url}/manifest.json")
    assert f"{store.url}/manifest.json" in str(caught.value)


def test_nobody_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/manifest.json"
    with pytest.raises(ManifestError, match="cannot be read: http://127.*Connect"):
        open_dataset(url)


def test_a_manifest_on_a_disk_that_cannot_be_read(tmp_path):
    with pytest.raises(ManifestError, match="cannot be read: .*Is a directory"):
        open_dataset(f"{tmp_path}/")
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(ManifestError, match="cannot be read: .*Is a directory"):
        open_dataset(f"{tmp_path}/manifest.json")


def test_secrets_of_an_address_stay_out_of_messages(store):
    store.faulty, store.suffix = "403", "signature=hush"
    host = store.url.removeprefix("http://")
    storage = open_storage(f"http://someone:hush@{host}")
    with pytest.raises(PermissionError, match="answers 403") as caught:
        storage.read_file("shards/000000.tar?signature=hush")
    assert "hush" not in str(caught.value) and host in str(caught.value)


def test_workers_get_the_storage(store):
    storage = open_storage(f"{store.url}/shards")
    again = pickle.loads(pickle.dumps(storage))
    assert again.read_range("000000.tar", 0, 10) == storage.read_range("000000.tar", 0, 10)


@pytest.mark.parametrize(
    ("faulty", "told"),
    [("404", "HTTP 400 or above"), ("login", "tar cannot be read"), ("", "does not exist")],
)
def test_a_stream_over_http_is_told_by_its_url(local, store, faulty, told):
    store.faulty = faulty
    if not faulty:
        batches = take(stream_of([f"{store.url}/shards/000000.tar"]), 4)
        assert sum(batch.num_bad for batch in batches) == 0
        return
    with pytest.raises(LoaderError, match=told) as caught:
        take(stream_of([f"{store.url}/shards/00000{{0..3}}.tar"]), 1)
    assert f"{store.url}/shards/00000" in str(caught.value)


def test_the_local_file_of_an_object_is_a_whole_copy(local, store):
    storage = open_storage(store.url)
    file = storage.local_file("shards/000000.tar")
    assert Path(file.path).read_bytes() == (local.parent / "shards/000000.tar").read_bytes()
