"""Workers that are processes: each fills its slots of every batch, in memory they share.

A worker owns the same lanes in all batches, so it alone reads their chunks and holds their indices.
"""

from __future__ import annotations

import os
import pickle
import selectors
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle

import torch

from pipeline.data.batches.batch import BatchWork
from pipeline.data.batches.buffers import BatchRing
from pipeline.data.batches.lanes import LanePlan
from pipeline.data.batches.messages import Begin, Failure, NewBuffer, Report, Task, WorkerPlan
from pipeline.data.batches.shared_memory import BatchLayout, create_memory
from pipeline.data.faults import LoaderError

# What a terminal, Slurm or a launcher sends to all processes of a job. The trainer answers them;
# workers hold them back for good, from before their first instruction on, and end with the trainer.
_SIGNALS_OF_THE_JOB = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
_END_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class _Process:
    number: int
    slots: range
    popen: subprocess.Popen[bytes]
    connection: Connection


class WorkerProcesses:
    """New interpreters (CUDA and threads do not survive a fork) that run nothing of the trainer's
    main module: spawned by multiprocessing they would import it, and torch and deepspeed with it.

    Each imports for half a second, while the trainer opens the data set, and then waits for its
    plan.
    """

    def __init__(self, num_workers: int, batch_size: int) -> None:
        """At most one a slot of a rank's batch."""
        count = min(num_workers, batch_size)
        self._plan = open(create_memory(0), "wb")
        self._processes: list[_Process] = []
        try:
            for number in range(count):
                slots = range(number * batch_size // count, (number + 1) * batch_size // count)
                self._processes.append(_start_process(number, slots, self._plan.fileno()))
        except BaseException:
            self.kill()
            raise

    def begin(self, plan: LanePlan) -> list[_Process]:
        """Give all of them the plan; who calls ends them."""
        with self._plan:
            self._plan.write(pickle.dumps(WorkerPlan(plan, len(self._processes))))
        for process in self._processes:
            with suppress(OSError):  # it has ended: the reader of reports tells how
                process.connection.send(Begin())
        return self._processes

    def kill(self) -> None:
        """Instead of `begin`, or where what follows it fails."""
        self._plan.close()
        _kill(self._processes)
        for process in self._processes:
            process.connection.close()


class ProcessCrew:
    """Fills batches in processes that were started before and end with it.

    A process that ends, whatever ended it, fails all batches in the making and later ones.
    """

    def __init__(self, plan: LanePlan, workers: WorkerProcesses) -> None:
        self._share = plan.share
        self._error: LoaderError | None = None
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._works: dict[int, BatchWork] = {}
        self._num_works = 0
        self._processes = workers.begin(plan)
        self._ring = BatchRing(
            BatchLayout.of(plan.share), self._announce, page_locked=torch.cuda.is_available()
        )
        self._reports = threading.Thread(target=self._read, name="loader-reports", daemon=True)
        self._reports.start()

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    @property
    def process_ids(self) -> list[int]:
        return [process.popen.pid for process in self._processes]

    def start(self, samples_seen: int) -> BatchWork:
        with self._sending:
            lease = self._ring.lease()
            work = BatchWork(samples_seen + self._share.first_lane, lease.images, lease.arrays)
            number = self._enter(work)
            for process in self._processes:
                with suppress(OSError):  # it has ended: the reader of reports tells how
                    process.connection.send(Task(number, lease.number, samples_seen, process.slots))
        return work

    def _enter(self, work: BatchWork) -> int:
        """Its number. It is kept until every slot is filled, even if nobody wants it any more: its
        buffer is not to be given to another batch before.
        """
        with self._lock:
            if self._error is not None:
                work.fail(self._error)
            self._works[self._num_works] = work
            self._num_works += 1
            return self._num_works - 1

    def close(self) -> None:
        """Kill the workers: they hold nothing that could be left half-done."""
        if self._closed.is_set():
            return
        self._closed.set()
        _kill(self._processes)
        self._reports.join(_END_TIMEOUT_S)
        for process in self._processes:
            process.connection.close()
        self._works.clear()
        self._ring.close()

    def _announce(self, number: int, descriptor: int) -> None:
        for process in self._processes:
            with suppress(OSError):
                process.connection.send(NewBuffer(number))
                send_handle(process.connection, descriptor, process.popen.pid)

    def _read(self) -> None:
        with selectors.DefaultSelector() as selector:
            for process in self._processes:
                selector.register(process.connection, selectors.EVENT_READ, process)
            while True:
                for key, _ in selector.select():
                    try:
                        self._take(key.data.connection.recv())
                    except (EOFError, OSError):
                        return self._lost(key.data)

    def _take(self, message: Report | Failure) -> None:
        with self._lock:
            work = self._works[message.work]
        if isinstance(message, Failure):
            message.error.__cause__ = _WorkerTraceback(message.told)
            work.fail(message.error)
            return
        work.done(message.filled)
        if not work.num_pending:
            with self._lock:
                del self._works[message.work]

    def _lost(self, process: _Process) -> None:
        if self.closed:
            return
        with suppress(subprocess.TimeoutExpired):
            process.popen.wait(_END_TIMEOUT_S)
        with self._lock:
            self._error = LoaderError(_obituary(process))
            for work in self._works.values():
                work.fail(self._error)


class _WorkerTraceback(Exception):
    """Where an error was raised in its worker; shown as its cause."""

    def __str__(self) -> str:
        return f"in a worker process:\n{self.args[0]}"


def _start_process(number: int, slots: range, plan: int) -> _Process:
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "pipeline.data.batches.worker"]
    command += [str(theirs.fileno()), str(plan), str(os.getpid())]
    # Modules are found where this process finds them, and not in whatever folder it is started in.
    paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    held = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS_OF_THE_JOB)
    try:
        with theirs:
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), plan),
                env={**os.environ, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1"},
            )
    except BaseException:
        ours.close()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    return _Process(number, slots, popen, Connection(ours.detach()))


def _kill(processes: list[_Process]) -> None:
    for process in processes:
        process.popen.kill()
    for process in processes:
        with suppress(subprocess.TimeoutExpired):  # in a read that a dead file system holds
            process.popen.wait(_END_TIMEOUT_S)


def _obituary(process: _Process) -> str:
    code = process.popen.returncode
    name = f"loader worker {process.number} (process {process.popen.pid})"
    if code == -signal.SIGKILL:
        return (
            f"{name} was killed, most often for want of memory (`dmesg | grep -i oom` tells): "
            f"lower data.num_workers or data.prefetch_batches, or give the job more memory"
        )
    if code is not None and code < 0:
        return f"{name} was ended by {signal.Signals(-code).name}"
    return f"{name} ended with code {code}: what it printed stands above"
