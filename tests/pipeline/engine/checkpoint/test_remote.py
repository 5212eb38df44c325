"""Copies in another storage: fsspec's memory, and S3 as moto serves it on loopback."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest
import stamina

from pipeline.distributed.group import PeerError
from pipeline.engine.checkpoint import CheckpointError, CheckpointManager
from pipeline.engine.checkpoint.remote import RemoteCheckpoints, Uploader
from pipeline.state import TrainState
from tests.gloo import run_gloo
from tests.pipeline.engine.checkpoint.sharded import Engine, job, manager, world_of

URL = "memory://bucket/run"


@pytest.fixture
def memory(monkeypatch) -> Iterator[fsspec.AbstractFileSystem]:
    files = fsspec.filesystem("memory")
    _empty(files)
    with stamina.set_testing(True, attempts=4):  # the same attempts, without waiting
        yield files
    _empty(files)


def _empty(files: fsspec.AbstractFileSystem) -> None:
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def save(run_dir: Path, *steps: int, remote: str = URL) -> None:
    for step in steps:  # a start each: while one is copied, of several that come only the last is
        with manager(run_dir, remote=remote) as checkpoints:
            checkpoints.load_latest(Engine())
            checkpoints.save(Engine().fill(step), TrainState(step, 8 * step))


def restored(run_dir: Path, remote: str = URL) -> tuple[int, bool]:
    engine = Engine()
    with manager(run_dir, remote=remote) as checkpoints:
        step = checkpoints.load_latest(engine).step
    return step, engine.holds(step)


def names(files: fsspec.AbstractFileSystem, path: str) -> list[str]:
    return sorted(found.rpartition("/")[2] for found in files.ls(path, detail=False))


@pytest.mark.usefixtures("alone")
def test_the_newest_are_kept_there_and_a_bare_run_dir_goes_on_from_them(memory, tmp_path, capsys):
    save(tmp_path / "run", 10, 20, 30)
    assert names(memory, "/bucket/run") == ["latest", "step_00000020", "step_00000030"]
    assert memory.cat_file("/bucket/run/latest") == b"step_00000030\n"
    there = names(memory, "/bucket/run/step_00000030")
    assert there == ["rank_00000.safetensors", "rng_00000.json", "state.json"]
    shutil.rmtree(tmp_path / "run")
    assert restored(tmp_path / "run") == (30, True)
    assert f"fetching {URL}/step_00000030" in capsys.readouterr().err
    assert (tmp_path / "run/checkpoints/latest").read_text() == "step_00000030\n"
    assert restored(tmp_path / "run") == (30, True)


@pytest.mark.usefixtures("alone")
def test_a_damaged_copy_falls_back_too(memory, tmp_path):
    save(tmp_path / "run", 10, 20)
    shutil.rmtree(tmp_path / "run")
    path = "/bucket/run/step_00000020/rank_00000.safetensors"
    content = memory.cat_file(path)
    memory.pipe_file(path, content[:-1] + bytes([content[-1] ^ 1]))
    assert restored(tmp_path / "run") == (10, True)


@pytest.mark.usefixtures("alone")
def test_a_copy_that_was_broken_off_is_no_checkpoint(memory, tmp_path):
    save(tmp_path / "run", 10, 20)
    shutil.rmtree(tmp_path / "run")
    memory.rm_file("/bucket/run/step_00000020/state.json")
    assert restored(tmp_path / "run") == (10, True)


@pytest.mark.usefixtures("alone")
def test_what_was_not_copied_is_made_up_for_at_the_next_start(memory, tmp_path):
    save(tmp_path / "run", 10)
    save(tmp_path / "run", 20, remote="")
    assert names(memory, "/bucket/run") == ["latest", "step_00000010"]
    assert restored(tmp_path / "run") == (20, True)
    assert names(memory, "/bucket/run") == ["latest", "step_00000010", "step_00000020"]


@pytest.mark.usefixtures("alone")
def test_another_runs_folder_is_refused(memory, tmp_path):
    save(tmp_path / "one", 10)
    save(tmp_path / "other", 20, remote="")
    with pytest.raises(CheckpointError, match="holds the checkpoints of another run"):
        restored(tmp_path / "other")


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("url", "told"), [("nowhere://bucket", "Protocol not known"), ("memory://x/run", "failed")]
)
def test_a_remote_that_does_not_answer_is_refused_at_once(memory, tmp_path, monkeypatch, url, told):
    monkeypatch.setattr(memory, "cat_file", _failing(10**9, memory.cat_file))
    with pytest.raises(CheckpointError, match=f"checkpoint.remote = .*{told}"):
        manager(tmp_path / "run", remote=url)


def _failing(times: int, real):
    """Every call fails so many times before it does what it should."""
    left: dict[tuple[object, ...], int] = {}

    def call(*arguments, **options):
        left.setdefault(arguments, times)
        if left[arguments]:
            left[arguments] -= 1
            raise OSError("503 slow down")
        return real(*arguments, **options)

    return call


@pytest.mark.usefixtures("alone")
def test_requests_that_fail_are_made_again(memory, tmp_path, monkeypatch):
    for name in ("put_file", "get_file", "cat_file", "pipe_file"):
        monkeypatch.setattr(memory, name, _failing(3, getattr(memory, name)))
    save(tmp_path / "run", 10)
    shutil.rmtree(tmp_path / "run")
    assert restored(tmp_path / "run") == (10, True)


@pytest.mark.usefixtures("alone")
def test_a_store_that_stays_away_does_not_end_the_run(memory, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        patched.setattr(memory, "put_file", _failing(10**9, memory.put_file))
        save(tmp_path / "run", 10)
    assert "warning: checkpoint step_00000010 was not copied: " in capsys.readouterr().err
    assert not memory.exists("/bucket/run/latest")
    assert restored(tmp_path / "run") == (10, True)
    assert memory.exists("/bucket/run/latest")


def test_a_slow_store_gets_the_newest_and_what_it_reads_stays(tmp_path):
    begun, go_on = threading.Event(), threading.Event()
    copied: list[int] = []
    told: list[str] = []

    class Slow(RemoteCheckpoints):
        def upload(self, folder: Path, step: int, kept: int) -> None:
            begun.set()
            assert go_on.wait(20)
            copied.append(step)

    uploader = Uploader(Slow("memory://slow"), lambda step: tmp_path / str(step), 2, told.append)
    uploader.add(10)
    assert begun.wait(20)
    uploader.add(20)
    uploader.add(30)
    assert uploader.in_use() == {10, 30}
    go_on.set()
    assert uploader.finish(20)
    assert copied == [10, 30] and uploader.in_use() == set() and not told


@pytest.mark.usefixtures("alone")
def test_a_run_that_was_told_to_end_does_not_wait_for_the_copy(
    memory, tmp_path, monkeypatch, capsys
):
    never = threading.Event()
    monkeypatch.setattr(RemoteCheckpoints, "upload", lambda *_: never.wait(60))
    checkpoints = manager(tmp_path / "run", remote=URL)
    checkpoints.save(Engine().fill(10), TrainState(10))
    checkpoints.close(upload=False)
    assert f"checkpoint step_00000010 is not copied to {URL}; the next" in capsys.readouterr().err
    assert not never.is_set()
    never.set()


def upload_slowly(rank: int, world_size: int, run_dir: str, remote: str) -> bool:
    """Whether the copy was there when this rank was done."""
    real = RemoteCheckpoints.upload

    def upload(*arguments: Any) -> None:
        time.sleep(12)
        real(*arguments)

    setattr(RemoteCheckpoints, "upload", upload)  # noqa: B010 - mypy
    world = replace(world_of(rank, world_size), timeout=timedelta(seconds=8))
    with CheckpointManager(job(run_dir, remote=remote), world, "data") as checkpoints:
        checkpoints.save(Engine(1, rank, world_size).fill(10), TrainState(10))
    return Path(remote.removeprefix("file://"), "latest").exists()


@pytest.mark.slow
def test_ranks_wait_for_a_copy_longer_than_for_each_other(tmp_path):
    remote = f"file://{tmp_path}/remote"
    assert run_gloo(upload_slowly, 2, str(tmp_path / "run"), remote) == [True, True]


@pytest.fixture
def s3(monkeypatch) -> Iterator[dict[str, str]]:
    server_module = pytest.importorskip("moto.server", reason="needs moto[server]")
    pytest.importorskip("s3fs", reason="needs s3fs")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()
    fsspec.filesystem("s3").mkdir("checkpoints")
    yield environment
    fsspec.filesystem("s3").clear_instance_cache()
    server.stop()


S3_URL = "s3://checkpoints/run"


def save_there(
    rank: int, world_size: int, run_dir: str, environment: dict[str, str], steps: list[int]
) -> None:
    os.environ.update(environment)
    for step in steps:
        with manager(run_dir, rank, world_size, remote=S3_URL) as checkpoints:
            checkpoints.load_latest(Engine(1, rank, world_size))
            checkpoints.save(Engine(1, rank, world_size).fill(step), TrainState(step, 8 * step))


def restore_from_there(
    rank: int, world_size: int, run_dir: str, environment: dict[str, str], failures: int
) -> tuple[int, bool]:
    os.environ.update(environment)
    from s3fs import S3FileSystem

    S3FileSystem._get_file = _failing_coroutine(failures, S3FileSystem._get_file)
    engine = Engine(3, rank, world_size)
    with manager(run_dir, rank, world_size, remote=S3_URL) as checkpoints:
        step = checkpoints.load_latest(engine).step
    return step, engine.holds(step)


def _failing_coroutine(times: int, real):
    left = [times]

    async def call(*arguments, **options):
        if left[0]:
            left[0] -= 1
            raise OSError("503 slow down")
        return await real(*arguments, **options)

    return call


@pytest.mark.slow
def test_s3(s3, tmp_path):
    run_dir = tmp_path / "run"
    run_gloo(save_there, 2, str(run_dir), s3, [10, 20, 30])
    files = fsspec.filesystem("s3")
    files.invalidate_cache()
    assert names(files, "checkpoints/run") == ["latest", "step_00000020", "step_00000030"]
    assert len(names(files, "checkpoints/run/step_00000030")) == 5
    shutil.rmtree(run_dir)
    assert run_gloo(restore_from_there, 2, str(run_dir), s3, 2) == [(30, True)] * 2


def no_bucket(rank: int, world_size: int, run_dir: str) -> str:
    try:
        with manager(run_dir, rank, world_size, remote="nowhere://x"):
            return ""
    except (CheckpointError, PeerError) as error:
        return str(error)


def test_every_rank_refuses_a_bad_remote(tmp_path):
    for told in run_gloo(no_bucket, 2, str(tmp_path)):
        assert "checkpoint.remote = nowhere://x: Protocol not known" in told
