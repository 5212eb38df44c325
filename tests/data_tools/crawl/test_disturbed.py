"""The crawl stage killed, stopped and out of disk: it ends, says why, leaves no child and nothing
half-made, and the next run gives what an undisturbed one gives."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_tools import crawl
from data_tools.tables.schema import FATES, FETCHED, DatasetPaths, read_table
from tests.data_tools.crawl.drivers import Driver, all_gone, running_driver, workers
from tests.data_tools.crawl.hostile_server import hostile_site
from tests.data_tools.crawl.jobs import fetched_rows, make_job, stored_image, write_kept

# each starts img2dataset, 5 s
pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        (signal.SIGKILL, -9),
    ],
)
def test_no_child_outlives_the_driver(tmp_path, sent, code):
    with hostile_site(delay_s=0.3) as site:
        write_kept(tmp_path, [site.url(f"/n/{number}.jpg") for number in range(400)])
        with running_driver(tmp_path, allow_private=[site.host], threads=2) as driver:
            driver.until(lambda: driver.urls_done() > 2)
            family = driver.descendants()
            assert len(family) >= 4, "guard, img2dataset, a worker, a logger"
            driver.process.send_signal(sent)
            assert driver.end()[0] == code
            assert all_gone(family)
    assert not list((tmp_path / "crawl").glob("part-*")), "nothing half-crawled under a final name"


def test_a_killed_worker_is_an_error_at_once(tmp_path):
    """img2dataset alone waits for a killed worker for ever."""
    with hostile_site(delay_s=0.3) as site:
        write_kept(tmp_path, [site.url(f"/n/{number}.jpg") for number in range(400)])
        with running_driver(tmp_path, allow_private=[site.host], threads=2) as driver:
            driver.until(lambda: driver.urls_done() > 2)
            for worker in workers(driver):
                worker.kill()
            code, errors = driver.end(seconds=20)
            assert all_gone(list(driver.family))
    assert code == 1
    assert "a worker of img2dataset was killed" in errors and "run again" in errors


@pytest.mark.slow
def test_a_stopped_worker_is_a_stall(tmp_path):
    with hostile_site(delay_s=0.3) as site:
        write_kept(tmp_path, [site.url(f"/n/{number}.jpg") for number in range(400)])
        settings = {"allow_private": [site.host], "threads": 2, "stall_timeout_s": 5}
        with running_driver(tmp_path, **settings) as driver:
            driver.until(lambda: driver.urls_done() > 2)
            for worker in workers(driver):
                worker.suspend()
            code, errors = driver.end(seconds=60)
            assert code == 1 and "finished nothing for 5 s" in errors
            assert all_gone(list(driver.family))


@pytest.mark.slow
def test_a_killed_guard_is_an_error_at_once(tmp_path):
    with hostile_site(delay_s=0.3) as site:
        write_kept(tmp_path, [site.url(f"/n/{number}.jpg") for number in range(400)])
        with running_driver(tmp_path, allow_private=[site.host], threads=2) as driver:
            driver.until(lambda: driver.urls_done() > 2)
            for process in driver.descendants():
                if "data_tools.crawl.guard" in process.cmdline():
                    process.kill()
            code, errors = driver.end(seconds=20)
            assert code == 1 and "guard process ended with code -9" in errors
            assert all_gone(list(driver.family))


def kill_workers(driver: Driver) -> None:
    for worker in workers(driver):
        worker.kill()


def kill_guard(driver: Driver) -> None:
    for process in driver.descendants():
        if "data_tools.crawl.guard" in process.cmdline():
            process.kill()


def kill_driver(driver: Driver) -> None:
    driver.process.kill()


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed(crawled, tmp_path):
    """kill -9 of a worker, of the guard and of the driver in the first part, of the driver again in
    the second; the fifth run finishes."""
    crawled.site.delay_s = 0.2
    settings = {"allow_private": [crawled.site.host], "samples_per_part": 30, "threads": 4}
    write_kept(tmp_path, [r["url"] for r in crawled.rows], [r["caption"] for r in crawled.rows])
    try:
        for kill in (kill_workers, kill_guard, kill_driver):
            disturb("part-00000", kill, tmp_path, settings)
        assert not (tmp_path / "crawl" / "part-00000").exists()
        disturb("part-00001", kill_driver, tmp_path, settings)
    finally:
        crawled.site.delay_s = 0.0
    assert (tmp_path / "crawl" / "part-00000").exists()
    paths = DatasetPaths(tmp_path)
    assert crawl.run(make_job(tmp_path, **settings), paths) == crawled.counts
    assert not list((tmp_path / "crawl").glob(".part-*")), "leftovers are cleared away"
    assert_same_crawl(paths, crawled.paths)


def disturb(part: str, kill: Callable[[Driver], None], out_dir: Path, settings: dict) -> None:
    with running_driver(out_dir, **settings) as driver:
        driver.until(lambda: driver.urls_done(part) > 5)
        kill(driver)
        code, _ = driver.end()
        assert code == (-signal.SIGKILL if kill is kill_driver else 1)
        assert all_gone(list(driver.family))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"needs root to mount a small tmpfs: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_the_rest_comes_later(crawled, small_disk):
    settings = {"allow_private": [crawled.site.host], "samples_per_part": 30}
    rows = crawled.rows
    write_kept(small_disk, [row["url"] for row in rows], [row["caption"] for row in rows])
    filler = small_disk / "filler"
    with filler.open("wb") as file:  # 50 kB are left; a part of 30 takes 150 kB
        free = _free(small_disk) - 50_000
        file.write(b"x" * free)
    with running_driver(small_disk, **settings) as driver:
        code, errors = driver.end(seconds=120)
        assert all_gone(list(driver.family))
    assert code == 1 and ("No space left" in errors or "disk" in errors), errors
    assert not list((small_disk / "crawl").glob("part-*"))
    filler.unlink()
    paths = DatasetPaths(small_disk)
    assert crawl.run(make_job(small_disk, **settings), paths) == crawled.counts
    assert_same_crawl(paths, crawled.paths)


def _free(folder: Path) -> int:
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize


def assert_same_crawl(one: DatasetPaths, other: DatasetPaths) -> None:
    """Equal but for where in its tar an image lies: img2dataset writes in order of arrival."""
    ours, theirs = fetched_rows(one), fetched_rows(other)
    assert ours.keys() == theirs.keys()
    for uid, row in ours.items():
        for column in set(FETCHED.names) - {"shard", "offset"}:
            assert row[column] == theirs[uid][column]
        assert np.array_equal(stored_image(one, row), stored_image(other, theirs[uid]))
    fates = [read_table(paths.fates("crawl"), FATES) for paths in (one, other)]
    assert fates[0].sort_by("uid").equals(fates[1].sort_by("uid"))
