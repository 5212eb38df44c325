"""Equal bytes whatever the machine, the number of processes, and how often a run was killed."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from data_tools import pack
from data_tools.dataset.audit import audit
from data_tools.dataset.manifest import load_manifest
from data_tools.pack import order
from data_tools.tables.schema import DatasetPaths
from data_tools.work.tasks import Task
from tests.data_tools.stages import curated_job, make_job

ROOT = Path(__file__).parents[3]
SCRIPT = """
import sys, time
from pathlib import Path
import data_tools.pack.stage as stage
from data_tools.tables.schema import DatasetPaths
from tests.data_tools.stages import make_job

root, processes, delay = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
job = make_job(root, 20)
job.pack.processes = processes
write = stage.write_shard
def slow(*unit):
    time.sleep(delay)
    return write(*unit)
if delay:
    stage.write_shard = slow
if __name__ == "__main__":
    stage.run(job, DatasetPaths(root))
"""


@pytest.fixture(scope="module")
def curated(tmp_path_factory) -> DatasetPaths:
    return curated_job(tmp_path_factory.mktemp("curated"))


@pytest.fixture(scope="module")
def undisturbed(curated, tmp_path_factory) -> dict[str, str]:
    """13 shards of 20 samples, by one process."""
    paths = copy_of(curated, tmp_path_factory.mktemp("undisturbed"))
    pack.run(make_job(paths.root, 20), paths)
    return digests(paths)


def copy_of(paths: DatasetPaths, folder: Path) -> DatasetPaths:
    shutil.copytree(paths.root, folder / "data")
    return DatasetPaths(folder / "data")


def digests(paths: DatasetPaths) -> dict[str, str]:
    files = [paths.manifest, *paths.shards.iterdir()]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def start(paths: DatasetPaths, processes: int, delay: float = 0.0, **options) -> subprocess.Popen:
    script = paths.root / "pack_it.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    command = [sys.executable, str(script), str(paths.root), str(processes), str(delay)]
    return subprocess.Popen(command, env=environment, **options)


@pytest.mark.slow
def test_any_number_of_processes_gives_equal_bytes(curated, undisturbed, tmp_path):
    for processes in (2, 3):
        paths = copy_of(curated, tmp_path / str(processes))
        assert start(paths, processes).wait(timeout=120) == 0
        assert digests(paths) == undisturbed


@pytest.mark.slow
def test_two_machines_give_equal_bytes(curated, undisturbed, tmp_path):
    """As far as one machine can be two: hash seed, locale, time zone, folder, umask, HOME."""
    for number, (seed, language, zone, umask) in enumerate(
        (("1", "C", "UTC", 0o022), ("4242", "de_DE.UTF-8", "Asia/Tokyo", 0o077))
    ):
        paths = copy_of(curated, tmp_path / f"machine {number}")
        home = tmp_path / f"home{number}"
        home.mkdir()
        environment = {"PYTHONHASHSEED": seed, "LC_ALL": language, "TZ": zone, "HOME": str(home)}
        process = start(
            paths, 1, cwd=home, env=environment, preexec_fn=lambda mask=umask: os.umask(mask)
        )
        assert process.wait(timeout=120) == 0
        assert digests(paths) == undisturbed


def test_a_killed_run_goes_on_and_gives_equal_bytes(curated, undisturbed, tmp_path):
    paths = copy_of(curated, tmp_path)
    process = start(paths, 1, delay=0.3)
    wait_for(paths, 3, process)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    (work,) = paths.root.glob(".shards*.tmp")
    kept = {file.name: file.stat().st_ino for file in finished_tars(work)}
    assert 3 <= len(kept) < 13 and not paths.shards.exists() and not paths.manifest.exists()
    (work / "000001.tar").write_bytes(b"\0" * (work / "000001.tar").stat().st_size)  # a power cut
    pack.run(make_job(paths.root, 20), paths)
    assert digests(paths) == undisturbed
    again = {file.name: file.stat().st_ino for file in paths.shards.glob("*.tar")}
    assert {name for name in kept if kept[name] == again[name]} == kept.keys() - {"000001.tar"}
    assert not list(paths.root.glob(".shards*"))


def finished_tars(work: Path) -> list[Path]:
    return [work / f"{file.name[:6]}.tar" for file in work.glob("*.entry.json")]


def wait_for(paths: DatasetPaths, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while sum(len(finished_tars(work)) for work in paths.root.glob(".shards*.tmp")) < count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_workers_end_with_a_driver_that_is_killed(curated, tmp_path):
    paths = copy_of(curated, tmp_path)
    process = start(paths, 2)
    children: list[str] = []
    deadline = time.monotonic() + 60
    while len(children) < 3 and process.poll() is None:  # two workers and the resource tracker
        assert time.monotonic() < deadline
        tasks = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        children = tasks.read_text().split() if tasks.exists() else []
    process.kill()
    process.wait(timeout=30)
    deadline = time.monotonic() + 30
    while any(alive(child) for child in children):
        assert time.monotonic() < deadline, "a worker outlived its driver"
        time.sleep(0.05)


def alive(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_tasks_of_an_array_share_the_shards(curated, undisturbed, tmp_path):
    paths = copy_of(curated, tmp_path)
    job = make_job(paths.root, 20)
    counts = [pack.run_share(job, paths, Task(index, 3)) for index in (2, 0)]
    assert [count["shards"] for count in counts] == [4, 5]
    assert not paths.manifest.exists()
    pack.run(job, paths)
    assert digests(paths) == undisturbed


def test_shards_by_bytes_end_before_the_target(curated, tmp_path):
    paths = copy_of(curated, tmp_path)
    job = make_job(paths.root)
    job.pack.samples_per_shard, job.pack.target_shard_bytes = None, 200_000
    counts = pack.run(job, paths)
    manifest = load_manifest(paths.manifest)
    assert counts["samples"] == manifest.num_samples == 242
    sizes = [shard.num_bytes for shard in manifest.shards]
    assert len(sizes) > 3 and all(170_000 < size < 230_000 for size in sizes[:-1]), sizes
    assert audit(manifest, 256).problems == []
    tiny = copy_of(curated, tmp_path / "tiny")
    job = make_job(tiny.root)
    job.pack.samples_per_shard, job.pack.target_shard_bytes = None, 1
    assert pack.run(job, tiny)["shards"] == 242, "a shard has one sample at least"


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs of 1.2 MB; data set and tables of the run take more."""
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a tmpfs needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, timeout=30)
    if done.returncode:
        pytest.skip(f"no tmpfs to be had: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True, timeout=30)


@pytest.mark.slow
def test_a_full_disk_then_room_gives_equal_bytes(curated, undisturbed, tmp_path, small_disk):
    out = small_disk / "data"
    out.mkdir()
    paths = DatasetPaths(out)
    shutil.copytree(curated.root / "tables", out / "tables")
    (out / "crawl").symlink_to(curated.root / "crawl")
    process = start(paths, 1, stderr=subprocess.PIPE, text=True)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 1 and "Make room or give another" in told, told
    (work,) = out.glob(".shards*.tmp")
    kept = {file.name for file in finished_tars(work)}
    assert 0 < len(kept) < 13 and not list(work.glob("*.part"))
    remount = ["mount", "-o", "remount,size=20m", str(small_disk)]
    subprocess.run(remount, check=True, timeout=30)
    assert start(paths, 1).wait(timeout=120) == 0
    assert digests(paths) == undisturbed


def test_the_order_has_more_than_one_row_group(curated, tmp_path, monkeypatch, undisturbed):
    """Shards that begin and end inside row groups: as for 10^8 samples."""
    monkeypatch.setattr(order, "ROWS_PER_GROUP", 2048)
    rows = pq.read_table(curated.table("balanced"))
    many = DatasetPaths(tmp_path)
    shutil.copytree(curated.root / "tables", tmp_path / "tables")
    (tmp_path / "crawl").symlink_to(curated.root / "crawl")
    grow(many, rows, 25)
    job = make_job(tmp_path, 1500)
    pack.run(job, many)
    manifest = load_manifest(many.manifest)
    assert [shard.num_samples for shard in manifest.shards] == [1500] * 4 + [50]
    assert audit(manifest, 64).problems == []


def grow(paths: DatasetPaths, rows, times: int) -> None:
    """The balanced and the kept table `times` as long, with uids of their own."""
    for name in ("balanced", "kept"):
        table = pq.read_table(paths.table(name))
        parts = []
        for number in range(times):
            uids = pc.binary_join_element_wise(
                pa.scalar(f"{number:02x}"), pc.utf8_slice_codeunits(table["uid"], 2), ""
            )
            parts.append(table.set_column(table.column_names.index("uid"), "uid", uids))
        pq.write_table(pa.concat_tables(parts), paths.table(name))
