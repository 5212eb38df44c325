"""A worker pool of threads of this process: one thread for a data set, any number for a stream."""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Callable
from functools import partial

import torch

from pipeline.data.batches.batch import BatchWork
from pipeline.data.batches.buffers import BufferPool
from pipeline.data.batches.shared_memory import BatchLayout
from pipeline.data.batches.slots import RankShare, SampleSource, fill_slots, task_ranges
from pipeline.data.samples.tokenizer import Tokenizer


class ThreadWorkerPool:
    """Fills batches in `num_workers` daemon threads, in the order they were started.

    concurrent.futures is not used because its threads are no daemons: a thread that hangs in a
    read on a dead file system must not keep the process alive.
    """

    def __init__(self, source: SampleSource, share: RankShare, num_workers: int) -> None:
        """The caller keeps `source` and closes it after this pool."""
        self._source = source
        self._share = share
        self._tokenizer = Tokenizer(share.context_length)
        self._buffers = BufferPool(BatchLayout.of(share), page_locked=torch.cuda.is_available())
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, name=f"loader-{number}", daemon=True)
            for number in range(num_workers)
        ]
        for thread in self._threads:
            thread.start()
        # A daemon thread that is inside OpenCV when the interpreter ends aborts the process (exit
        # code 134), so end the threads before.
        atexit.register(self.close)

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    def start(self, samples_seen: int) -> BatchWork:
        share = self._share
        buffer = self._buffers.acquire()
        work = BatchWork(samples_seen + share.first_lane, buffer.images, buffer.arrays)
        slots = range(share.batch_size)
        samples = self._source.samples(samples_seen, slots)
        for group in task_ranges(slots):
            self._tasks.put(partial(self._fill, work, group, samples[group.start : group.stop]))
        return work

    def close(self, timeout_s: float = 5.0) -> None:
        """Drop waiting tasks and wait for the running ones, at most
        `timeout_s` seconds per thread."""
        if self._closed.is_set():
            return
        self._closed.set()
        atexit.unregister(self.close)
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join(timeout_s)
        self._buffers.close()

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            if not self._closed.is_set():
                task()
            # Else this variable holds the last batch, and so its buffer, until the next task comes.
            del task

    def _fill(self, work: BatchWork, slots: range, samples: list[int]) -> None:
        if work.cancelled:
            return
        try:
            work.mark_filled(
                fill_slots(
                    self._source,
                    self._tokenizer,
                    work.arrays,
                    slots=slots,
                    samples=samples,
                    first_position=work.first_position,
                )
            )
        except BaseException as error:  # raised again in the consumer, by `take`
            work.fail(error)
