"""The copy to another storage: fsspec's memory, a folder, and S3 as moto serves it on loopback."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator

import fsspec
import pytest

from data_tools import pack
from data_tools.config import DatasetJob
from data_tools.dataset.manifest import load_manifest, verify_checksums
from data_tools.tables.schema import DataError, DatasetPaths
from tests.data_tools.stages import curated_job, make_job


@pytest.fixture(scope="module")
def curated(tmp_path_factory) -> DatasetPaths:
    return curated_job(tmp_path_factory.mktemp("curated"))


@pytest.fixture
def paths(curated, tmp_path) -> DatasetPaths:
    shutil.copytree(curated.root, tmp_path / "data")
    return DatasetPaths(tmp_path / "data")


@pytest.fixture
def target() -> str:
    return f"memory://{uuid.uuid4().hex}/set"


def job_to(paths: DatasetPaths, url: str) -> DatasetJob:
    job = make_job(paths.root)
    job.pack.target_url = url
    return job


def check_equal(paths: DatasetPaths, url: str) -> None:
    """What is there is what is here, and stands there alone."""
    files, root = fsspec.core.url_to_fs(url)
    found = {name.removeprefix(root.lstrip("/")).lstrip("/") for name in names_below(files, root)}
    wanted = {f"shards/{path.name}" for path in paths.shards.iterdir()} | {"manifest.json"}
    assert found == wanted
    for name in wanted:
        assert files.cat_file(f"{root}/{name}") == (paths.root / name).read_bytes(), name


def names_below(files, root: str) -> list[str]:
    return [name.lstrip("/") for name in files.find(root)]


def test_the_data_set_arrives_whole(paths, target):
    counts = pack.run(job_to(paths, target), paths)
    assert (counts["samples"], counts["shards"]) == (242, 3)
    check_equal(paths, target)
    pack.run(job_to(paths, target), paths)
    check_equal(paths, target)


def test_a_folder_can_be_trained_from(paths, tmp_path):
    copy = tmp_path / "elsewhere"
    pack.run(job_to(paths, f"file://{copy}"), paths)
    manifest = load_manifest(copy / "manifest.json")
    verify_checksums(manifest)
    assert manifest.num_samples == 242


class Breaking:
    """Lets `count` files through, then fails as a storage does."""

    def __init__(self, monkeypatch, files, count: int) -> None:
        self.sent: list[str] = []
        real = type(files).put_file

        def put_file(_, local, remote, **options):
            if len(self.sent) >= count:
                raise OSError("503 Slow Down")
            self.sent.append(remote.rpartition("/")[2])
            return real(files, local, remote, **options)

        monkeypatch.setattr(type(files), "put_file", put_file)


def test_an_upload_that_failed_goes_on(paths, target, monkeypatch):
    files, root = fsspec.core.url_to_fs(target)
    with monkeypatch.context() as patch:
        first = Breaking(patch, files, 4)
        with pytest.raises(DataError, match="503 Slow Down.*The shards are whole below out_dir"):
            pack.run(job_to(paths, target), paths)
    assert not files.exists(f"{root}/manifest.json"), "no manifest before all it names"
    load_manifest(paths.manifest)
    files.rm_file(f"{root}/shards/000000.tar")  # lost there since
    with monkeypatch.context() as patch:
        second = Breaking(patch, files, 99)
        pack.run(job_to(paths, target), paths)
    assert len(first.sent) == 4 and "000000.tar" in second.sent
    assert not set(second.sent) & (set(first.sent) - {"000000.tar"}), "sent once"
    check_equal(paths, target)


def test_another_data_set_there_is_refused_before_anything_is_packed(paths, target):
    files, root = fsspec.core.url_to_fs(target)
    files.pipe_file(f"{root}/manifest.json", json.dumps({"config_fingerprint": "other"}).encode())
    with pytest.raises(DataError, match="holds another data set .fingerprint other, this job"):
        pack.run(job_to(paths, target), paths)
    assert not paths.shards.exists()
    files.pipe_file(f"{root}/manifest.json", b"{}")
    with pytest.raises(DataError, match="holds another data set .fingerprint unknown"):
        pack.run(job_to(paths, target), paths)
    files.rm_file(f"{root}/manifest.json")
    files.pipe_file(f"{root}/shards/holiday.tar", b"mine")
    with pytest.raises(DataError, match="holds another data set .fingerprint unknown"):
        pack.run(job_to(paths, target), paths)
    assert files.cat_file(f"{root}/shards/holiday.tar") == b"mine"


def test_a_target_that_takes_nothing_is_told(paths, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match="target_url = file://.* failed: NotADirectoryError"):
        pack.run(job_to(paths, f"file://{tmp_path}/file/set"), paths)
    verify_checksums(load_manifest(paths.manifest))


def test_a_url_of_no_known_kind_is_refused_first(paths):
    with pytest.raises(DataError, match="target_url = nowhere://x: .*Give a URL of a kind"):
        pack.run(job_to(paths, "nowhere://x"), paths)
    assert not paths.shards.exists()


@pytest.fixture
def s3(monkeypatch) -> Iterator[str]:
    server_module = pytest.importorskip("moto.server", reason="needs moto[server]")
    pytest.importorskip("s3fs", reason="needs s3fs")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "testing"),
        ("AWS_SECRET_ACCESS_KEY", "testing"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL", endpoint),
    ):
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()
    yield endpoint
    fsspec.filesystem("s3").clear_instance_cache()
    server.stop()


@pytest.mark.slow
def test_s3(paths, s3):
    fsspec.filesystem("s3").mkdir("bucket")
    url = "s3://bucket/prefix/set"
    pack.run(job_to(paths, url), paths)
    check_equal(paths, url)
    other = job_to(paths, url)
    other.crawl.encode_quality = 80
    shutil.rmtree(paths.shards)
    paths.manifest.unlink()
    with pytest.raises(DataError, match="holds another data set"):
        pack.run(other, paths)
    absent = job_to(paths, "s3://no-such-bucket/set")
    with pytest.raises(DataError, match="target_url = s3://no-such-bucket/set failed"):
        pack.run(absent, paths)
