"""The crawl's child processes (the guard, img2dataset): each is started in its own process group,
and none is left behind.

Each child reads from a pipe (its stdin) whose write end only the driver has. When the driver dies,
however it dies, the pipe ends, and the child ends itself and its own children.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import IO

from data_tools.crawl.guard import CANNOT_WRITE, GuardSettings
from data_tools.crawl.img2dataset_part import WORKER_KILLED
from data_tools.tables.schema import DataError

GUARD_ANSWER_S = 60.0
# img2dataset's imports take 2 s of CPU, and up to a minute on a busy machine or a slow home folder:
# until its first sign of life the stall timeout is at least this.
START_UP_S = 180.0
POLL_S = 0.2


def _start(module: str, argument: str, stdout: int, stderr: int | None) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        # The driver's whole path in its order. The folder of the packages alone would be, in a
        # wheel's environment, site-packages before the standard library, and a package of PyPI
        # named dataclasses (img2dataset wants it) would hide the library's.
        "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path),
        # albumentations asks PyPI for a newer version of itself at every import
        "NO_ALBUMENTATIONS_UPDATE": "1",
        # by default glibc returns the memory of every decoded image to the kernel, and gets it back
        # page by page for the next: 1.3 ms of system time per 800 x 600 JPEG. Resident memory does
        # not grow by this.
        "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
        # urllib in img2dataset obeys http_proxy, and would ask the proxy for the guard's URLs
        "no_proxy": "127.0.0.1",
        "NO_PROXY": "127.0.0.1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", module, argument],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=stderr,
        env=environment,
        start_new_session=True,
    )


def stop_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and all its children at once. They need no time to clean up: what they write
    is used only after it is verified."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait(timeout=30)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Turn SIGTERM, by which Slurm ends a job, into SystemExit, so that `finally` clauses run; the
    exit code is 128 + 15, as a shell reports it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class GuardProcess:
    """The guard as a child process: `with GuardProcess(settings) as guard: guard.serve(...)`."""

    def __init__(self, settings: GuardSettings) -> None:
        self._settings = settings

    def __enter__(self) -> GuardProcess:
        settings = json.dumps(asdict(self._settings))
        self._process = _start("data_tools.crawl.guard", settings, subprocess.PIPE, None)
        return self

    def __exit__(self, *_: object) -> None:
        stop_group(self._process)

    def serve(self, rows: Path, fates: Path) -> str:
        """Open a part: `rows` is a parquet file with the columns url and upright_only, `fates` the
        file to which the guard appends one JSON line per URL. Returns the address to which
        img2dataset adds ?id=N. Raises DataError if the guard is dead or does not answer."""
        command = json.dumps({"rows": str(rows), "fates": str(fates)}) + "\n"
        try:
            self._stdin.write(command.encode())
        except BrokenPipeError:
            pass  # the guard is dead; reading its answer fails below, with the reason
        answer = b""
        deadline = time.monotonic() + GUARD_ANSWER_S
        while not answer.endswith(b"\n"):
            readable, _, _ = select.select(
                [self._stdout], [], [], max(0.0, deadline - time.monotonic())
            )
            piece = os.read(self._stdout.fileno(), 4096) if readable else b""
            if not piece:
                self.check_alive()
                raise DataError(
                    f"the crawl's guard gave no answer in {GUARD_ANSWER_S:.0f} s; run again"
                )
            answer += piece
        return str(json.loads(answer)["url"])

    def check_alive(self) -> None:
        """Raise DataError if the guard has ended."""
        code = self._process.poll()
        if code is not None:
            raise DataError(
                f"the crawl's guard process ended with code {code} (-9: killed, out of memory?; "
                f"{CANNOT_WRITE}: disk full?); run again: finished parts are kept"
            )

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None  # by PIPE in _start
        return self._process.stdin

    @property
    def _stdout(self) -> IO[bytes]:
        assert self._process.stdout is not None  # by PIPE in __enter__
        return self._process.stdout


def run_img2dataset(
    arguments: Path,
    log: Path,
    *,
    guard: GuardProcess,
    pulse: Callable[[], object],
    stall_timeout_s: float,
) -> None:
    """Run img2dataset with the arguments of a JSON file and watch it until it ends.

    `pulse()` returns a value that changes as long as work is done. Raises DataError, with the end
    of the log, if img2dataset fails, if one of its workers is killed, or if the pulse does not
    change for `stall_timeout_s`.
    """
    with log.open("wb") as output:
        process = _start(
            "data_tools.crawl.img2dataset_part",
            str(arguments),
            output.fileno(),
            subprocess.STDOUT,
        )
    try:
        last, since, patience_s = pulse(), time.monotonic(), max(stall_timeout_s, START_UP_S)
        while process.poll() is None:
            guard.check_alive()
            now = pulse()
            if now != last:
                last, since, patience_s = now, time.monotonic(), stall_timeout_s
            elif time.monotonic() - since > patience_s:
                raise DataError(
                    f"img2dataset finished nothing for {patience_s:.0f} s "
                    f"(crawl.stall_timeout_s) and was stopped; run again\n{log_tail(log)}"
                )
            time.sleep(POLL_S)
    finally:
        stop_group(process)
    if process.returncode == WORKER_KILLED:
        raise DataError(
            "a worker of img2dataset was killed, most often for memory: give the job more or lower "
            "crawl.processes, crawl.threads or crawl.max_image_pixels, and run again\n"
            + log_tail(log)
        )
    if process.returncode != 0:
        raise DataError(f"img2dataset ended with code {process.returncode}\n{log_tail(log)}")


def log_tail(log: Path, lines: int = 25) -> str:
    """The last lines of a log, for an error message."""
    text = log.read_text(errors="replace").replace("\r", "\n").splitlines()[-lines:]
    return "\n".join([f"the end of {log}:", *(f"  {line}" for line in text)])
