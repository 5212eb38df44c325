"""The two-node Slurm of tests/slurm_cluster: bring it up, submit, watch, take it down."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tests" / "slurm_cluster"
STATE = Path("/var/lib/slurm-two-nodes")
LOCK = Path("/run/lock/slurm-two-nodes")
CANNOT = 77
JOB_TIMEOUT_S = 240.0
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


class Unavailable(RuntimeError):
    """This machine cannot have the cluster; the message says why."""


class TwoNodes:
    def __init__(self) -> None:
        self.environment = os.environ | {
            "SLURM_CONF": str(STATE / "slurm.conf"),
            "OMP_NUM_THREADS": "1",
        }

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A client command; a job's own time is never part of it, so 60 s are a hang."""
        return subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def submit(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.call(sys.executable, "-m", "slurm.submit", *words)

    def submitted(self, *words: str) -> str:
        """The id of a job that must be accepted."""
        ended = self.submit(*words)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        told = re.fullmatch(r"submitted job (\d+); its output: \S+\n", ended.stdout)
        assert told is not None, ended.stdout
        return told[1]

    def job(self, job_id: str) -> dict[str, str]:
        """What `scontrol show job` tells: JobState, ExitCode, Restarts, NodeList, ..."""
        told = self.call("scontrol", "show", "job", "--oneliner", job_id)
        assert told.returncode == 0, told.stderr
        return dict(word.split("=", 1) for word in told.stdout.split() if "=" in word)

    def wait_until(
        self, job_id: str, condition: Callable[[dict[str, str]], bool]
    ) -> dict[str, str]:
        """The job when `condition` holds of it; its output in the AssertionError otherwise."""
        deadline = time.monotonic() + JOB_TIMEOUT_S
        while not condition(job := self.job(job_id)):
            assert time.monotonic() < deadline, f"{job}\n{output(job)}"
            time.sleep(0.1)
        return job

    def wait_for_end(self, job_id: str) -> dict[str, str]:
        return self.wait_until(job_id, lambda job: job["JobState"] in ENDED)

    def queue(self) -> list[str]:
        return self.call("squeue", "--noheader", "--format=%i").stdout.split()

    def power_off(self, node: str) -> None:
        """Kill all processes of the node and tell Slurm, which else needs 30 s to notice."""
        pid = int((STATE / f"node.{node}.pid").read_text())
        os.kill(pid, 9)
        down = ("update", f"nodename={node}", "state=down", "reason=test")
        assert self.call("scontrol", *down).returncode == 0

    def power_on(self, node: str) -> None:
        subprocess.run([SCRIPTS / "up.sh", node], check=True, capture_output=True, timeout=60)


def output(job: dict[str, str]) -> str:
    """What the job printed."""
    path = Path(job["StdOut"])
    return path.read_text() if path.exists() else f"{path}: not there"


@contextmanager
def two_nodes() -> Iterator[TwoNodes]:
    """One cluster a machine at a time; whatever happens inside, nothing of it stays."""
    if os.geteuid() != 0:
        raise Unavailable("two nodes on one machine need root (network namespaces)")
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # pytest-timeout ends a wait that is too long
        try:
            up = subprocess.run([SCRIPTS / "up.sh"], capture_output=True, text=True, timeout=550)
            if up.returncode == CANNOT:
                raise Unavailable(up.stderr.strip().splitlines()[-1])
            assert up.returncode == 0, up.stdout + up.stderr
            yield TwoNodes()
        finally:
            subprocess.run([SCRIPTS / "down.sh"], check=True, timeout=60)
