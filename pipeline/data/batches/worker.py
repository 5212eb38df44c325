"""One decoding process of the loader. `pipeline.data.batches.processes` starts it:

    python -m pipeline.data.batches.worker SOCKET PLAN PARENT

SOCKET and PLAN are file descriptors, PARENT is the parent's process id. Buffers and tasks arrive
through the socket and reports leave through it; pixels, tokens and caption ids go through shared
memory. torch is not imported: that would cost each worker
five seconds and 200 MB.
"""

from __future__ import annotations

import mmap
import os
import pickle
import select
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from time import monotonic

from pipeline.data.batches.messages import Failure, NewBuffer, Report, Task, WorkerPlan
from pipeline.data.batches.shared_memory import BatchLayout
from pipeline.data.batches.slots import BatchArrays, Filled, fill_slots, task_ranges
from pipeline.data.samples.tokenizer import Tokenizer

# When the parent dies the socket hangs up at once. If a process that the parent forked still holds
# the other end, there is no hang-up; then the changed parent id shows it, at this interval.
_PARENT_CHECK_MS = 1000
# Filled slots are reported at least this often, so that slow storage is not taken for dead.
_REPORT_EVERY_S = 1.0


def main(arguments: list[str]) -> None:
    socket, plan, parent = (int(argument) for argument in arguments)
    threading.Thread(target=_end_with_parent, args=(socket, parent), daemon=True).start()
    connection = Connection(socket)
    try:
        connection.recv()  # Begin
        # A map, not a file: all workers have the same open file and so one position in it.
        with mmap.mmap(plan, 0, prot=mmap.PROT_READ) as pickled:
            worker_plan: WorkerPlan = pickle.loads(pickled)
        os.close(plan)
        _Worker(connection, worker_plan).run()
    except (EOFError, ConnectionError):  # the trainer is gone
        os._exit(0)


class _Worker:
    def __init__(self, connection: Connection, plan: WorkerPlan) -> None:
        self._connection = connection
        self._lanes = plan.lanes.open(plan.num_workers)
        self._tokenizer = Tokenizer(plan.lanes.share.context_length)
        self._layout = BatchLayout.of(plan.lanes.share)
        self._first_lane = plan.lanes.share.first_lane
        self._buffers: dict[int, BatchArrays] = {}

    def run(self) -> None:
        while True:
            message = self._connection.recv()
            if isinstance(message, NewBuffer):
                descriptor = recv_handle(self._connection)
                memory = mmap.mmap(descriptor, self._layout.num_bytes)
                os.close(descriptor)
                self._buffers[message.number] = self._layout.arrays(memory)
                continue
            try:
                self._fill(message)
            except ConnectionError:
                raise
            except Exception as error:  # raised again in the trainer
                where = traceback.format_exc()
                self._connection.send(Failure(message.work, _sendable(error), where))

    def _fill(self, task: Task) -> None:
        samples = self._lanes.samples(task.samples_seen, task.slots)
        arrays = self._buffers[task.buffer]
        start, unreported = task.slots.start, Filled(task.slots[:0], [], {})
        reported_at = monotonic()
        for group in task_ranges(task.slots):
            part = fill_slots(
                self._lanes,
                self._tokenizer,
                arrays,
                slots=group,
                samples=samples[group.start - task.slots.start : group.stop - task.slots.start],
                first_position=task.samples_seen + self._first_lane,
            )
            unreported = Filled(
                range(start, group.stop),
                unreported.keys + part.keys,
                unreported.faults | part.faults,
            )
            if group.stop == task.slots.stop or monotonic() - reported_at > _REPORT_EVERY_S:
                self._connection.send(Report(task.work, unreported))
                start, unreported = group.stop, Filled(range(0), [], {})
                reported_at = monotonic()


def _sendable(error: BaseException) -> BaseException:
    """The error itself if it survives pickling, else a RuntimeError with its text: not every
    exception can be rebuilt from its arguments."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # exceptions may do anything there
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _end_with_parent(socket: int, parent: int) -> None:
    """Exit when the trainer is gone, even while another thread hangs in a read."""
    hangup = select.poll()
    hangup.register(socket, 0)  # errors and hang-ups only
    while not hangup.poll(_PARENT_CHECK_MS) and os.getppid() == parent:
        pass
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
