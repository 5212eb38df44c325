"""The crawl's child processes, as the driver sees them: started in their own group, never left
behind.

Each child holds the read end of a pipe (its stdin) whose write end only the driver has. When the
driver dies, however it dies, the pipe ends and the child ends itself and its own children.
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
# img2dataset imports for 2 s of CPU before it does anything, for a minute on a busy machine or a
# slow home: until its first sign of life the stall timeout is at least this.
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
        # glibc gives the memory of every decoded image back to the kernel and faults it in again
        # for the next: 1.3 ms of system time an 800 x 600 JPEG. Resident memory stays what it was.
        "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
        # urllib in img2dataset obeys http_proxy, and would send the guard's URLs to the site's
        # proxy
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
    """Kill the process and all its children. Nothing of theirs is worth a grace period: what they
    write lies aside until it is verified."""
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
    """Slurm ends a job by SIGTERM: leave through the `finally` clauses, with the code a shell
    shows."""
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
    """`with GuardProcess(settings) as guard: url = guard.serve(rows, fates)`."""

    def __init__(self, settings: GuardSettings) -> None:
        self._settings = settings

    def __enter__(self) -> GuardProcess:
        settings = json.dumps(asdict(self._settings))
        self._process = _start("data_tools.crawl.guard", settings, subprocess.PIPE, None)
        return self

    def __exit__(self, *_: object) -> None:
        stop_group(self._process)

    def serve(self, rows: Path, fates: Path) -> str:
        """Open a part: `rows` is a parquet with the columns url and upright_only, `fates` the
        file the guard appends a JSON line to for each. Returns the address to which img2dataset
        adds ?id=N."""
        command = json.dumps({"rows": str(rows), "fates": str(fates)}) + "\n"
        try:
            self._stdin.write(command.encode())
        except BrokenPipeError:
            pass  # it is dead; the reading below says so
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
    """Run img2dataset with the arguments of a JSON file and watch it to its end.

    `pulse` returns anything that changes as long as work is done. DataError, with the end of the
    log, when it ends with a code, when a worker of it is killed, or when the pulse stands still.
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
    text = log.read_text(errors="replace").replace("\r", "\n").splitlines()[-lines:]
    return "\n".join([f"the end of {log}:", *(f"  {line}" for line in text)])
