"""A worker pool of processes: each fills its own slots of every batch, in shared memory.

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
from pipeline.data.batches.buffers import BufferPool
from pipeline.data.batches.lanes import LanePlan
from pipeline.data.batches.messages import Begin, Failure, NewBuffer, Report, Task, WorkerPlan
from pipeline.data.batches.shared_memory import BatchLayout, create_memory
from pipeline.data.faults import LoaderError

# Signals that a terminal, Slurm or a launcher sends to all processes of a job. Only the trainer
# handles them; workers block them from before their first instruction and end with the trainer.
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
        """Start the processes: `num_workers`, but at most one per slot of the rank's batch."""
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
        """Give the plan to all processes. From then on the caller must end them."""
        with self._plan:
            self._plan.write(pickle.dumps(WorkerPlan(plan, len(self._processes))))
        for process in self._processes:
            with suppress(OSError):  # it has ended: _read_reports sees it and fails the work
                process.connection.send(Begin())
        return self._processes

    def kill(self) -> None:
        """End the processes: if `begin` is never called, or if what follows it fails."""
        self._plan.close()
        _kill(self._processes)
        for process in self._processes:
            process.connection.close()


class ProcessWorkerPool:
    """Fills batches in processes that were started before; `close` ends them.

    When a process ends, for whatever reason, all unfinished and later batches fail.
    """

    def __init__(self, plan: LanePlan, workers: WorkerProcesses) -> None:
        self._share = plan.share
        self._error: LoaderError | None = None
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._unfinished: dict[int, BatchWork] = {}
        self._num_works = 0
        self._processes = workers.begin(plan)
        self._buffers = BufferPool(
            BatchLayout.of(plan.share), self._announce, page_locked=torch.cuda.is_available()
        )
        self._reports = threading.Thread(
            target=self._read_reports, name="loader-reports", daemon=True
        )
        self._reports.start()

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    @property
    def process_ids(self) -> list[int]:
        return [process.popen.pid for process in self._processes]

    def start(self, samples_seen: int) -> BatchWork:
        with self._sending:
            buffer = self._buffers.acquire()
            work = BatchWork(samples_seen + self._share.first_lane, buffer.images, buffer.arrays)
            number = self._register(work)
            for process in self._processes:
                with suppress(OSError):  # it has ended: _read_reports sees it and fails the work
                    process.connection.send(
                        Task(number, buffer.number, samples_seen, process.slots)
                    )
        return work

    def _register(self, work: BatchWork) -> int:
        """Number the work and keep it until every slot is filled, even if nobody wants it any more:
        until then workers write into its buffer, which no other batch may use.
        """
        with self._lock:
            if self._error is not None:
                work.fail(self._error)
            self._unfinished[self._num_works] = work
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
        self._unfinished.clear()
        self._buffers.close()

    def _announce(self, number: int, descriptor: int) -> None:
        for process in self._processes:
            with suppress(OSError):
                process.connection.send(NewBuffer(number))
                send_handle(process.connection, descriptor, process.popen.pid)

    def _read_reports(self) -> None:
        with selectors.DefaultSelector() as selector:
            for process in self._processes:
                selector.register(process.connection, selectors.EVENT_READ, process)
            while True:
                for key, _ in selector.select():
                    try:
                        self._handle(key.data.connection.recv())
                    except (EOFError, OSError):
                        return self._fail_all(key.data)

    def _handle(self, message: Report | Failure) -> None:
        with self._lock:
            work = self._unfinished[message.work]
        if isinstance(message, Failure):
            message.error.__cause__ = _WorkerTraceback(message.traceback)
            work.fail(message.error)
            return
        work.mark_filled(message.filled)
        if not work.num_pending:
            with self._lock:
                del self._unfinished[message.work]

    def _fail_all(self, process: _Process) -> None:
        if self.closed:
            return
        with suppress(subprocess.TimeoutExpired):
            process.popen.wait(_END_TIMEOUT_S)
        with self._lock:
            self._error = LoaderError(_exit_message(process))
            for work in self._unfinished.values():
                work.fail(self._error)


class _WorkerTraceback(Exception):
    """Where an error was raised in its worker; shown as its cause."""

    def __str__(self) -> str:
        return f"in a worker process:\n{self.args[0]}"


def _start_process(number: int, slots: range, plan: int) -> _Process:
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "pipeline.data.batches.worker"]
    command += [str(theirs.fileno()), str(plan), str(os.getpid())]
    # The worker finds modules where this process does, and not in the folder it is started in.
    paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS_OF_THE_JOB)
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
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
    return _Process(number, slots, popen, Connection(ours.detach()))


def _kill(processes: list[_Process]) -> None:
    for process in processes:
        process.popen.kill()
    for process in processes:
        with suppress(subprocess.TimeoutExpired):  # in a read that a dead file system holds
            process.popen.wait(_END_TIMEOUT_S)


def _exit_message(process: _Process) -> str:
    code = process.popen.returncode
    name = f"loader worker {process.number} (process {process.popen.pid})"
    if code == -signal.SIGKILL:
        return (
            f"{name} was killed, most often because memory ran out (`dmesg | grep -i oom` shows "
            f"it): lower data.num_workers or data.prefetch_batches, or give the job more memory"
        )
    if code is not None and code < 0:
        return f"{name} was ended by {signal.Signals(-code).name}"
    return f"{name} ended with code {code}: see its output above"
