"""The crawl stage in a process of its own, to be killed, and a look at all its children."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil


class Driver:
    """The stage in a process of its own, to be killed."""

    def __init__(self, out_dir: Path, **settings: object) -> None:
        self.out_dir = out_dir
        self.leftovers = set((out_dir / "crawl").glob(".part-*.tmp"))
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
        own = [log for log in logs if log.parent not in self.leftovers]
        return sum(log.read_bytes().count(b"\n") for log in own)

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
