"""Locks between real processes: who holds one is named, and none outlives its holder."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from data_tools.ground import lock as lock_module
from data_tools.ground.lock import HeldError, LockError, take

ROOT = Path(__file__).parents[3]
HOLDS = """
import subprocess, sys, time
from pathlib import Path
from data_tools.ground.lock import take
lock = take(Path(sys.argv[1]), shared=sys.argv[2] == "shared")
if sys.argv[3:]:
    child = subprocess.Popen(["sleep", sys.argv[3]], pass_fds=[lock.fileno()])
print("held", flush=True)
time.sleep(600)
"""


@contextmanager
def holder(path: Path, *words: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock, and with it perhaps a child; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(path), *(words or ("alone",))],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait(timeout=30)
        process.stdout.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".lock"


def test_the_holder_is_named_at_once_and_however_often_one_asks(path: Path) -> None:
    with holder(path) as process:
        for _ in range(3):
            with pytest.raises(HeldError) as held:
                take(path)
            pattern = rf"process {process.pid} on {re.escape(socket.gethostname())}, since 20\d\d-"
            assert re.match(pattern, str(held.value))


def test_a_lock_ends_with_its_holder(path: Path) -> None:
    with holder(path) as process:
        process.kill()
        process.wait(timeout=30)
        take(path).close()


def test_what_a_killed_holder_had_started_is_waited_for(path: Path) -> None:
    with holder(path, "alone", "1.5") as process:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, and not reaped
        began = time.monotonic()
        take(path).close()
        assert time.monotonic() - began > 0.5, "the child had the lock"
        process.wait(timeout=30)


def test_but_not_for_ever(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "ENDING_S", 0.3)
    with holder(path, "alone", "20") as process:
        process.kill()
        process.wait(timeout=30)
        with pytest.raises(HeldError, match=f"process {process.pid} on "):
            take(path)


def test_the_earlier_start_of_a_requeued_job_is_waited_for_and_no_other_job(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "REQUEUED_S", 60.0)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with holder(path, SLURM_JOB_ID="7", SLURM_RESTART_COUNT="") as process:
        monkeypatch.setenv("SLURM_JOB_ID", "8")
        with pytest.raises(HeldError, match="Slurm job 7"):
            take(path)
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        subprocess.Popen(["sh", "-c", f"sleep 1; kill -9 {process.pid}"])
        take(path).close()


def test_a_second_start_within_one_start_of_a_job_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with holder(path, SLURM_JOB_ID="7"), pytest.raises(HeldError, match="Slurm job 7"):
        take(path)


def test_many_share_a_lock_and_none_is_named(path: Path) -> None:
    with holder(path, "shared"), holder(path, "shared"):
        take(path, shared=True).close()
        with pytest.raises(HeldError, match="^another process$"):
            take(path)
    with holder(path), pytest.raises(HeldError, match="process "):
        take(path, shared=True)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_named_with_the_fix(
    number: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuses)
    with pytest.raises(LockError) as refused:
        take(path)
    told = str(refused.value)
    assert told.startswith(f"{path}: the file system gives no locks ({os.strerror(number)})")
    assert "give a folder on another file system" in told and "Lustre: option flock" in told


def test_a_disk_that_fails_is_no_file_system_without_locks(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fails)
    with pytest.raises(OSError, match="Input/output error"):
        take(path)
