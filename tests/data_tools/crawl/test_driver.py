"""The crawl stage with the real img2dataset: what arrives, what a second run does, what a kill
leaves."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from data_tools import crawl
from data_tools.schema import FATES, FETCHED, DataError, DatasetPaths, read_table
from tests.data_tools.crawl import pictures
from tests.data_tools.crawl.conftest import CRAWLED
from tests.data_tools.crawl.hostile_server import hostile_site
from tests.data_tools.crawl.jobs import fetched_rows, make_job, stored_image, write_kept


def test_every_kept_pair_has_its_fate(crawled):
    fates = read_table(crawled.paths.fates("crawl"), FATES).to_pylist()
    by_uid = {row["uid"]: row["status"] for row in fates}
    assert len(fates) == len(CRAWLED)
    assert {path: by_uid[crawled.uid(path)] for path in CRAWLED} == CRAWLED
    assert crawled.counts == {"kept": 51, "fetched": 45, "failed": 2, "rejected": 4}
    assert set(fetched_rows(crawled.paths)) == {
        crawled.uid(path) for path, fate in CRAWLED.items() if fate == "fetched"
    }


def test_rows_describe_the_stored_and_the_original_image(crawled):
    rows = fetched_rows(crawled.paths)
    large = rows[crawled.uid("/large.jpg")]
    assert (large["original_width"], large["original_height"]) == (900, 600)
    assert (large["width"], large["height"]) == (96, 64)
    assert large["sha256"] == hashlib.sha256(pictures.jpeg(900, 600)).hexdigest()
    for row in rows.values():
        assert stored_image(crawled.paths, row).shape[:2] == (row["height"], row["width"])


def test_small_images_are_not_enlarged(crawled):
    row = fetched_rows(crawled.paths)[crawled.uid("/icon.gif")]
    assert (row["width"], row["height"]) == (9, 9)


def test_what_img2dataset_damages_arrives_whole(crawled):
    rows = fetched_rows(crawled.paths)
    assert np.all(stored_image(crawled.paths, rows[crawled.uid("/16bit.png")]) == 100)
    rotated = stored_image(crawled.paths, rows[crawled.uid("/rotated.jpg")])
    upright = np.asarray(pictures.gradient()).astype(int)
    assert rotated.shape == upright.shape and np.abs(rotated - upright).mean() < 5
    transparent = stored_image(crawled.paths, rows[crawled.uid("/transparent.png")])
    assert transparent[20, 50].min() > 250 and transparent[20, 10, 0] > 240


def test_a_second_run_fetches_nothing_and_gives_the_same(crawled):
    before = sum(crawled.site.requests.values())
    assert crawl.run(crawled.job, crawled.paths) == crawled.counts
    assert sum(crawled.site.requests.values()) == before


def test_other_rows_or_settings_are_refused_and_not_mixed_in(crawled, tmp_path):
    job = make_job(tmp_path, allow_private=[crawled.site.host], samples_per_part=30)
    urls = [row["url"] for row in crawled.rows]
    captions = [row["caption"] for row in crawled.rows]
    paths = DatasetPaths(tmp_path)
    shutil.copytree(crawled.paths.crawl, tmp_path / "crawl")
    write_kept(tmp_path, urls, captions)
    assert crawl.run(job, paths) == crawled.counts, "the same rows and settings are accepted"
    job.crawl.encode_quality = 50
    with pytest.raises(DataError, match="part-00000 was crawled from other rows or with other"):
        crawl.run(job, paths)
    job.crawl.encode_quality = 95
    job.crawl.threads = 3
    assert crawl.run(job, paths) == crawled.counts, "speed is not a setting of the data"
    write_kept(tmp_path, urls[:-1], captions[:-1])
    with pytest.raises(DataError, match="delete .*crawl to crawl again"):
        crawl.run(job, paths)


def test_no_image_at_all_is_an_error_with_counts_and_a_fix(tmp_path):
    with hostile_site(robots=404) as site:
        write_kept(tmp_path, [site.url(f"/status/404?{n}") for n in range(5)])
        job = make_job(tmp_path, allow_private=[site.host])
        with pytest.raises(DataError, match="no image of 5 URLs: 5 failed:http_404. Do the URLs"):
            crawl.run(job, DatasetPaths(tmp_path))
    assert read_table(DatasetPaths(tmp_path).fates("crawl"), FATES).num_rows == 5
    assert not list((tmp_path / "crawl").glob("part-*")), "the next run tries again"
    assert not DatasetPaths(tmp_path).table("fetched").exists()


def test_nothing_kept_is_an_error(tmp_path):
    write_kept(tmp_path, [])
    with pytest.raises(DataError, match="no pair was kept"):
        crawl.run(make_job(tmp_path), DatasetPaths(tmp_path))


class Driver:
    """The stage in a process of its own, to be killed."""

    def __init__(self, out_dir: Path, **settings: object) -> None:
        self.out_dir = out_dir
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.data_tools.crawl.jobs",
                str(out_dir),
                json.dumps(settings),
            ],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.family: set[psutil.Process] = set()

    def descendants(self) -> list[psutil.Process]:
        """Every process the driver ever had, with the children of its children."""
        self.family.update(psutil.Process(self.process.pid).children(recursive=True))
        return list(self.family)

    def until(self, what: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert self.process.poll() is None, f"ended too early: {self.process.communicate()}"
            assert time.monotonic() < deadline, "it did not come to that"
            self.descendants()
            time.sleep(0.05)

    def urls_done(self, part: str = "part-*") -> int:
        logs = (self.out_dir / "crawl").glob(f".{part}.*.tmp/guard.jsonl")
        return sum(log.read_bytes().count(b"\n") for log in logs)

    def end(self, seconds: float = 30) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=seconds)
        return self.process.returncode, errors


@contextmanager
def running_driver(out_dir: Path, **settings: object) -> Iterator[Driver]:
    driver = Driver(out_dir, **settings)
    try:
        yield driver
    finally:
        if driver.process.poll() is None:
            driver.process.kill()
            driver.process.communicate(timeout=20)


def all_gone(processes: list[psutil.Process], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes):
            return True
        time.sleep(0.1)
    return False


def workers(driver: Driver) -> list[psutil.Process]:
    """img2dataset's pool workers (and its logger): spawned by multiprocessing, below the part."""
    found = []
    for process in driver.descendants():
        try:
            if any("spawn_main" in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize(
    ("sent", "code"),
    [pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow), (signal.SIGKILL, -9)],
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


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed(crawled, tmp_path):
    """kill -9 once in the first part and once in the second; the third run finishes."""
    crawled.site.delay_s = 0.2
    settings = {"allow_private": [crawled.site.host], "samples_per_part": 30, "threads": 4}
    write_kept(tmp_path, [r["url"] for r in crawled.rows], [r["caption"] for r in crawled.rows])
    try:
        for part in ("part-00000", "part-00001"):
            kill_in_part(part, tmp_path, settings)
    finally:
        crawled.site.delay_s = 0.0
    assert (tmp_path / "crawl" / "part-00000").exists()
    paths = DatasetPaths(tmp_path)
    assert crawl.run(make_job(tmp_path, **settings), paths) == crawled.counts
    assert not list((tmp_path / "crawl").glob(".part-*")), "leftovers are cleared away"
    assert_same_crawl(paths, crawled.paths)


def kill_in_part(part: str, out_dir: Path, settings: dict) -> None:
    with running_driver(out_dir, **settings) as driver:
        driver.until(lambda: driver.urls_done(part) > 5)
        driver.process.kill()
        driver.end()
        assert all_gone(list(driver.family))


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
