"""A pool of open files, so that a shard is not opened for every sample."""

from __future__ import annotations

import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager


class _OpenFile:
    """`retired`: out of the pool; the last user closes it."""

    __slots__ = ("descriptor", "num_users", "retired")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.num_users = 0
        self.retired = False


class FilePool:
    """Open files by path, least recently used closed first. Safe to call from threads: a file in
    use is never closed.
    """

    def __init__(self, max_open: int | None = None) -> None:
        """`max_open` defaults to a quarter of the process's limit of file descriptors, at most
        1024.
        """
        soft_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._max_open = max_open or min(1024, max(16, soft_limit // 4))
        self._files: OrderedDict[str, _OpenFile] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def open(self, path: str) -> Iterator[int]:
        """A descriptor for os.pread, open at least as long as the `with` block."""
        file = self._acquire(path)
        try:
            yield file.descriptor
        finally:
            with self._lock:
                file.num_users -= 1
                if file.retired and not file.num_users:
                    os.close(file.descriptor)

    def read(self, path: str, offset: int, size: int) -> bytes:
        """A positioned read; fewer bytes only at the file's end. Raises OSError."""
        with self.open(path) as descriptor:
            data = os.pread(descriptor, size, offset)
            while len(data) < size:  # a read across a signal or of more than 2 GiB may be short
                more = os.pread(descriptor, size - len(data), offset + len(data))
                if not more:
                    break
                data += more
            return data

    def forget(self, path: str) -> None:
        """Open the file anew next time: after an error its descriptor may be stale."""
        with self._lock:
            file = self._files.pop(path, None)
            if file is not None:
                self._retire(file)

    def close(self) -> None:
        with self._lock:
            while self._files:
                self._retire(self._files.popitem(last=False)[1])

    @property
    def num_open(self) -> int:
        return len(self._files)

    def _acquire(self, path: str) -> _OpenFile:
        with self._lock:
            if path in self._files:
                return self._use(path)
        # Outside the lock: an open costs a millisecond on a parallel file system, and whenever the
        # lanes move on to their next chunks there are as many opens as lanes.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        with self._lock:
            if path in self._files:
                os.close(descriptor)
            else:
                self._files[path] = _OpenFile(descriptor)
            return self._use(path)

    def _use(self, path: str) -> _OpenFile:
        file = self._files[path]
        self._files.move_to_end(path)
        file.num_users += 1
        while len(self._files) > self._max_open:
            self._retire(self._files.popitem(last=False)[1])
        return file

    @staticmethod
    def _retire(file: _OpenFile) -> None:
        file.retired = True
        if not file.num_users:
            os.close(file.descriptor)
