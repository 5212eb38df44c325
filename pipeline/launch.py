"""Compose the configuration once, start the ranks of this machine with it and watch them.

Hydra started in every rank would make a run folder per rank (hydra#2070); here one process composes
and the ranks read what it wrote into a temporary file. Of the commands that start ranks only a
training writes into the run's folder, and it is locked meanwhile. Several nodes are srun's affair:
slurm/train.sbatch starts the same module with `--config`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, NoReturn

from data_tools.ground import command_line, exit_codes, settings
from pipeline.commands import TRAIN
from pipeline.config import ClusterConfig, ConfigError, LossBackend, TrainJob
from pipeline.config.arguments import job_of_arguments
from pipeline.config.frozen import load_frozen, to_yaml
from pipeline.config.run_config import lock_run, refuse_misfit
from pipeline.config.schema import RefusedStartError
from pipeline.config.validation.cluster import gpu_problems
from pipeline.devices import local_gpu_problems, visible_gpus
from pipeline.signals import STOP_SIGNALS, hold_stop_signals

GRACE_S = 5.0
"""How long ranks that lost a peer may take to report it, in seconds: they hold SIGTERM back and may
be waiting in a collective."""
POLL_S = 0.05
PR_SET_PDEATHSIG = 1
# gloo raises a bare RuntimeError, NCCL its own; both say in words that it was not this rank
LOST_PEER = ("Connection reset by peer", "Connection closed by peer", "remote process exited")
# Python's, torch's for CUDA, and torch's for the host, which is a bare RuntimeError
OUT_OF_MEMORY = ("MemoryError", "OutOfMemoryError", "can't allocate memory")
FITS = (
    "  too large for this machine: give train.image_micro_batch_size and "
    "train.text_micro_batch_size (the same numbers, less memory),\n  deepspeed.zero_stage=2 or 3 "
    "with several ranks, a smaller train.global_batch_size, or a smaller model"
)

RankMain = Callable[[TrainJob], "int | None"]


def main(module: str, rank_main: RankMain, arguments: list[str]) -> int:
    """Entry of `python -m pipeline.train`, for the launcher and for ranks.

    `--config FILE`: be one rank, which holds STOP_SIGNALS back for `rank_main` to answer. Anything
    else: Hydra overrides; compose, validate, launch. Returns REFUSED
    (data_tools.ground.exit_codes) for a configuration that was refused; else the process ends here,
    with 0, STOPPED or, a launcher, the code of the rank that failed first; 128 and the signal where
    one ended them.
    """
    if not _is_rank(arguments):
        return launch(module, arguments)
    try:
        hold_stop_signals()
        exit_now(run_rank(rank_main, load_frozen(arguments[1])))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return exit_codes.REFUSED


def launch(module: str, arguments: list[str]) -> int:
    """Compose, validate, start the ranks and end with their code; returns the code of a command
    line or configuration that was refused. The run's folder is theirs alone meanwhile."""

    def start(_: settings.NoSettings, overrides: list[str]) -> NoReturn:
        job = job_of_arguments(overrides)
        if job.cluster.nodes > 1:
            raise ConfigError(
                f"cluster.nodes = {job.cluster.nodes}: one command starts the ranks of one "
                "machine; for several nodes use `python -m slurm.submit` with the same arguments"
            )
        refuse_gpus_without_work(job.cluster, trains=True)
        if job.loss.backend is LossBackend.triton and visible_gpus() == 0:
            raise ConfigError(
                "loss.backend = triton: this machine shows no GPU; give auto or torch, or start it "
                "where there is one"
            )
        refuse_misfit(job)
        lock = lock_run(job.run_dir)
        with handed_over(job) as path:
            words, ranks = ["--config", str(path)], job.cluster.ranks_per_node
            code = start_ranks(module, words, Path(job.run_dir), ranks, True, lock)
        exit_now(code)

    return command_line.run(TRAIN, arguments, start)


@contextmanager
def handed_over(job: TrainJob) -> Iterator[Path]:
    """A temporary file from which ranks of this machine read the job; the run's own config.yaml is
    written when they have accepted it. ConfigError where there is no room for it."""
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(TemporaryDirectory(prefix="clip-pretrain-"))
            path = Path(folder) / "config.yaml"
            path.write_text(to_yaml(job), encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"no temporary file can be written ({error}), by which the ranks get their "
                "configuration: make room, or name a folder with TMPDIR=..."
            ) from error
        yield path


def refuse_gpus_without_work(cluster: ClusterConfig, *, trains: bool) -> None:
    """ConfigError where two ranks would share a GPU, or a training would leave one idle."""
    gpus = visible_gpus()
    if trains or (gpus and cluster.ranks_per_node > gpus):
        problems = [*gpu_problems(cluster), *local_gpu_problems(cluster, gpus)]
        if problems:
            raise ConfigError("the ranks cannot start:\n  " + "\n  ".join(problems))


def launch_unless_rank(module: str, arguments: list[str]) -> None:
    """First thing in a module that has ranks: a launcher ends in here, before the imports below it.

    Those imports take 3 s (torch, DeepSpeed), and a launcher needs none of them: without them a
    refused configuration is reported, and the ranks are started, that much earlier. In a rank this
    function returns.
    """
    if not _is_rank(arguments):
        sys.exit(launch(module, arguments))


def _is_rank(arguments: list[str]) -> bool:
    return arguments[:1] == ["--config"] and len(arguments) == 2


def exit_now(code: int) -> NoReturn:
    """End the process without the interpreter's teardown: with torch loaded that takes seconds of a
    grace time and may wait for peers that are failing. Everything is closed by now."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run_rank(rank_main: RankMain, job: TrainJob) -> int:
    """Run one rank and return its exit code.

    The rank where an error of ours or of the system was raised prints its message in one line; any
    other error, a defect, keeps its traceback. A rank that only lost its peers says so in one line,
    because the peer that failed has said why.
    """
    rank = os.environ.get("RANK", "?")
    try:
        return rank_main(job) or 0
    except RefusedStartError:
        return exit_codes.REFUSED
    except Exception as error:  # whatever it was, this process ends by `exit_now`
        if type(error).__name__ == "PeerError":
            pass
        elif type(error).__module__.startswith(("pipeline.", "data_tools.")):
            _print_line(f"error (rank {rank}): {error}")
        elif any(word in f"{type(error).__name__}: {error}" for word in OUT_OF_MEMORY):
            _print_line(f"error (rank {rank}): {_first_line(error)}\n{FITS}")
        elif any(word in str(error) for word in LOST_PEER):
            _print_line(f"rank {rank}: lost the connection to another rank")
        elif isinstance(error, OSError) and error.errno is not None:
            _print_line(f"error (rank {rank}): {error}; see its disk's room and permissions")
        else:
            traceback.print_exc()
        return 1


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].strip() or type(error).__name__


def start_ranks(
    module: str,
    words: list[str],
    run_dir: Path,
    num_ranks: int,
    stops_at_checkpoint: bool = False,
    lock: IO[str] | None = None,
) -> int:
    """Start `num_ranks` processes of `python -m module`, each with `words`, and wait for them.
    They inherit `lock`, so that it holds until the last of them has ended.

    When one fails, the others get SIGTERM, and SIGKILL after GRACE_S, so that no rank waits for one
    that is gone. SIGTERM and SIGUSR1 are passed on, SIGINT as SIGTERM; a second SIGINT kills. Ranks
    die with this process, even by kill -9.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", module, *words]
    # A terminal sends Ctrl-C to the ranks too, but only this process is to answer it. Signals are
    # blocked before exec, so that one during the seconds of `import torch` is neither lost nor
    # kills a rank.
    held = STOP_SIGNALS if stops_at_checkpoint else {signal.SIGINT}
    received: list[int] = []
    for number in STOP_SIGNALS:
        signal.signal(number, lambda signalled, _: received.append(signalled))
    launcher, started_at = os.getpid(), time.time()

    def before_exec() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, held)
        _die_with(launcher)

    ranks_word = "rank" if num_ranks == 1 else "ranks"
    _print_line(f"starting {num_ranks} {ranks_word} of {module}, run_dir {run_dir}")
    ranks: list[subprocess.Popen[bytes]] = []
    for rank in range(num_ranks):
        environment = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(num_ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        ranks.append(
            subprocess.Popen(
                command,
                env=environment,
                preexec_fn=before_exec,
                pass_fds=[] if lock is None else [lock.fileno()],
            )
        )
    code = _Watch(ranks, received, stops_at_checkpoint).until_all_ended()
    if code == exit_codes.STOPPED:
        _print_line(f"checkpoint saved; go on with: python -m {module} run_dir={run_dir}")
    stacks = run_dir / "stacks"
    written = [file.stat() for file in stacks.glob("rank_*")]
    if any(file.st_size and file.st_mtime >= started_at for file in written):
        _print_line(f"stacks of the stuck ranks: {stacks}")
    return code


def _die_with(launcher: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != launcher:  # it died before the line above
            os._exit(1)


def _print_line(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class _Watch:
    """Watches the ranks until the last of them has ended."""

    def __init__(
        self, ranks: list[subprocess.Popen[bytes]], received: list[int], stops_at_checkpoint: bool
    ) -> None:
        self._ranks, self._received = ranks, received
        self._stops_at_checkpoint = stops_at_checkpoint
        self._passed_on: list[int] = []
        self._sent: set[int] = set()

    def until_all_ended(self) -> int:
        """The exit code of the run; `received` grows by the signals that this process gets."""
        while True:
            while self._received:
                number = self._received.pop(0)
                if number == signal.SIGINT and number in self._passed_on:
                    _print_line("ending the ranks")
                    self._kill()
                    return exit_codes.INTERRUPTED
                self._pass_on(number)
            codes = [rank.poll() for rank in self._ranks]
            if any(code not in (None, 0, exit_codes.STOPPED) for code in codes):
                return self._failed(codes)
            if None not in codes:
                return max(code or 0 for code in codes)
            time.sleep(POLL_S)

    def _pass_on(self, number: int) -> None:
        """Send a signal to all ranks; SIGINT as SIGTERM, because each rank would answer SIGINT with
        a traceback."""
        then = "stopping after a checkpoint" if self._stops_at_checkpoint else "stopping"
        again = "; Ctrl-C again ends the ranks at once" if number == signal.SIGINT else ""
        _print_line(f"{signal.Signals(number).name}: {then}{again}")
        self._passed_on.append(number)
        sent = int(signal.SIGTERM) if number == signal.SIGINT else number
        self._sent.add(sent)
        for rank in self._ranks:
            rank.send_signal(sent)

    def _failed(self, codes: list[int | None]) -> int:
        """End the other ranks and return the exit code of the first that failed."""
        first = next(i for i, code in enumerate(codes) if code not in (None, 0, exit_codes.STOPPED))
        code = int(codes[first] or 1)
        as_requested = not self._stops_at_checkpoint and -code in self._sent
        if not as_requested:
            reason = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            _print_line(f"error: rank {first} of {len(codes)} {reason}; stopping the others")
        for rank in self._running():
            rank.terminate()
        deadline = time.monotonic() + GRACE_S
        while any(self._running()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        self._kill()
        if as_requested:
            return 128 + self._passed_on[0]
        return 128 - code if code < 0 else code

    def _running(self) -> Iterable[subprocess.Popen[bytes]]:
        return (rank for rank in self._ranks if rank.poll() is None)

    def _kill(self) -> None:
        for rank in self._running():
            rank.kill()
        for rank in self._ranks:
            with suppress(subprocess.TimeoutExpired):  # a driver call that even SIGKILL waits for
                rank.wait(GRACE_S)
