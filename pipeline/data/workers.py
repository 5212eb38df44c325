"""Threads that run small tasks in the order they were given, and end when told to."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class WorkerPool:
    """`num_threads` daemon threads. Decoding, reading and tokenizing release the interpreter lock,
    so threads suffice.

    Daemons, unlike concurrent.futures': a thread that a dead file system holds in a read must not
    keep the process alive. Tasks handle their own exceptions.
    """

    def __init__(self, num_threads: int, name: str) -> None:
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True)
            for number in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    def submit(self, task: Callable[[], None]) -> None:
        self._tasks.put(task)

    def close(self, timeout_s: float = 5.0) -> None:
        """Drop waiting tasks and wait for the running ones, `timeout_s` at most a thread."""
        if self._closed.is_set():
            return
        self._closed.set()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join(timeout_s)

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            if not self._closed.is_set():
                task()
