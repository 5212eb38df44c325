"""Locks that go with the process that holds them, however it ends.

flock, which every file system of a cluster has or refuses openly: NFS passes it on to the server,
where it holds for all nodes, and frees it when a node is gone for the time of its lease.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import IO

ENDING_S = 30.0
"""How long the processes of a holder that was killed may take to end, in seconds."""
REQUEUED_S = 120.0
"""The same for the earlier start of a Slurm job, perhaps on a node that died: KillWait is 30 s at
most sites, and an NFS server keeps the locks of a dead node for 90 s."""
POLL_S = 0.2
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class LockError(RuntimeError):
    """Another process holds the lock, or the file system has none."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, as written into its file."""

    host: str
    pid: int
    since: str
    job: str = ""
    """Id of the Slurm job; empty outside of one."""
    restarts: str = ""
    """How often Slurm had started that job before."""

    @classmethod
    def this_process(cls) -> Holder:
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            since=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            job=os.environ.get("SLURM_JOB_ID", ""),
            restarts=os.environ.get("SLURM_RESTART_COUNT", ""),
        )

    def __str__(self) -> str:
        job = f", Slurm job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"

    def ends_within_s(self) -> float:
        """How long to wait for its end, in seconds: a requeued job may start while its earlier
        start is ending, a command is repeated while what it had started is. Else 0."""
        me = self.this_process()
        if self.job and self.job == me.job and self.restarts != me.restarts:
            return REQUEUED_S
        return ENDING_S if self.host == me.host and not _is_running(self.pid) else 0.0


class HeldError(LockError):
    """Another process holds the lock; the message says which, where, and since when."""

    def __init__(self, holder: Holder | None) -> None:
        super().__init__(str(holder or "another process"))
        self._holder = holder

    def by_parent(self) -> bool:
        """Whether the process that started this one holds it."""
        parent = (socket.gethostname(), os.getppid())
        return self._holder is not None and (self._holder.host, self._holder.pid) == parent


def take(path: Path, *, shared: bool = False, wait_s: float = 0.0) -> IO[str]:
    """Lock `path`, a file that is made where it is missing; returns the open file.

    The lock holds until that file is closed here and in every process that inherited it, or they
    have all ended. With `shared` many may hold it, and none alone. Waits for `wait_s` seconds, and
    for a holder that is ending. Raises HeldError, LockError where the file system has no locks, and
    OSError where `path` cannot be written.
    """
    file = path.open("a+", encoding="utf-8")  # not "w": that would empty the holder's
    began = time.monotonic()
    try:
        while not _locked(file, shared):
            holder = holder_of(path)
            wait = max(wait_s, holder.ends_within_s() if holder else 0.0)
            if time.monotonic() - began >= wait:
                raise HeldError(holder)
            time.sleep(POLL_S)
        # of many holders none is named: whoever wrote last may have ended
        _write(file, None if shared else Holder.this_process())
    except BaseException:
        file.close()
        raise
    return file


def holder_of(path: Path) -> Holder | None:
    """Who wrote into the lock file last; None where nobody did, or many hold it."""
    try:
        return Holder(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _locked(file: IO[str], shared: bool) -> bool:
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise LockError(
            f"{file.name}: the file system gives no locks ({error.strerror}), and without them two "
            "processes could write here at once; give a folder on another file system, or have "
            "this one mounted with locks (Lustre: option flock; NFS: without nolock)"
        ) from error
    return True


def _write(file: IO[str], holder: Holder | None) -> None:
    file.truncate(0)
    if holder is not None:
        json.dump(asdict(holder), file)
    file.flush()


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is another user's
    try:
        after_its_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except OSError:
        return True
    return after_its_name.split()[0] != "Z"  # ended, and its parent has not asked how
