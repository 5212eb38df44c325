"""Compose once, freeze, then start the ranks of this machine and watch over them.

Hydra started in every rank would make a run folder per rank (hydra#2070); here one process composes
and the ranks read run_dir/config.yaml. Several nodes are srun's affair: slurm/train.sbatch starts
the same module with `--config`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.config import ConfigError, TrainJob, freeze, job_of_arguments, load_frozen

EXIT_BAD_CONFIG = 2
GRACE_S = 20.0
PR_SET_PDEATHSIG = 1
# gloo raises a bare RuntimeError, NCCL its own; both say in words that it was not this rank
LOST_PEER = ("Connection reset by peer", "Connection closed by peer", "remote process exited")


def main(module: str, rank_main: Callable[[TrainJob], None], arguments: list[str]) -> int:
    """Entry of `python -m pipeline.train` and `python -m pipeline.evaluate`.

    `--config RUN_DIR/config.yaml`: be one rank. Anything else: Hydra overrides; compose, validate,
    freeze, launch. Returns the exit code: 0, 2 for a configuration that was refused, else that of
    the rank that failed first.
    """
    try:
        if arguments[:1] == ["--config"] and len(arguments) == 2:
            return _run_rank(rank_main, load_frozen(arguments[1]))
        job = job_of_arguments(arguments)
        config_path = freeze(job)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_CONFIG
    if job.cluster.nodes > 1:
        print(
            f"error: cluster.nodes = {job.cluster.nodes}: one command starts the ranks of one "
            f"machine; for several nodes "
            "use `python -m slurm.submit` with the same arguments",
            file=sys.stderr,
        )
        return EXIT_BAD_CONFIG
    return launch_ranks(module, config_path, job.cluster.ranks_per_node)


def _run_rank(rank_main: Callable[[TrainJob], None], job: TrainJob) -> int:
    """A failure that has an explanation is told in a line by the rank that knows it; a defect keeps
    its traceback; a rank that only lost its peers says so in a line, for the peer said why."""
    rank = os.environ.get("RANK", "?")
    try:
        rank_main(job)
    except (ValueError, RuntimeError, OSError) as error:
        if type(error).__name__ == "PeerError":
            told = ""
        elif type(error).__module__.startswith(("pipeline.", "data_tools.")):
            told = f"error (rank {rank}): {error}\n"
        elif any(word in str(error) for word in LOST_PEER):
            told = f"rank {rank}: lost the connection to another rank\n"
        else:
            raise
        sys.stderr.write(told)
        sys.stderr.flush()
        os._exit(1)  # not through torch's teardown, which may wait for the peers that are failing
    return 0


def launch_ranks(module: str, config_path: Path, num_ranks: int) -> int:
    """Start `num_ranks` processes of `python -m module --config config_path` and wait for them.

    When one ends with a failure, the others get SIGTERM, and SIGKILL after a grace time: no rank
    waits for one that is gone. SIGTERM, SIGINT and SIGUSR1 are passed on. Ranks die with this
    process, even by kill -9.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", module, "--config", str(config_path)]
    ranks: list[subprocess.Popen[bytes]] = []

    def pass_on(received: int, _: object) -> None:
        for rank in ranks:
            rank.send_signal(received)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, pass_on)
    for rank in range(num_ranks):
        environment = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(num_ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        ranks.append(subprocess.Popen(command, env=environment, preexec_fn=_die_with_parent))
    return _wait(ranks)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait(ranks: list[subprocess.Popen[bytes]]) -> int:
    while True:
        codes = [rank.poll() for rank in ranks]
        failed = [code for code in codes if code not in (None, 0)]
        if failed:
            break
        if all(code == 0 for code in codes):
            return 0
        time.sleep(0.05)
    first = next(index for index, code in enumerate(codes) if code not in (None, 0))
    code = int(codes[first] or 1)
    reason = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    print(f"error: rank {first} of {len(ranks)} {reason}; stopping the others", file=sys.stderr)
    for rank in ranks:
        if rank.poll() is None:
            rank.terminate()
    deadline = time.monotonic() + GRACE_S
    while any(rank.poll() is None for rank in ranks) and time.monotonic() < deadline:
        time.sleep(0.05)
    for rank in ranks:
        if rank.poll() is None:
            rank.kill()
            rank.wait()
    return 128 - code if code < 0 else code
