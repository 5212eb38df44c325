"""Bytes of a sample from its shard: one positioned read where image and text lie close together,
else two.
"""

from __future__ import annotations

import os
import resource
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.data.faults import SampleError
from pipeline.data.index import SampleLocation

# Between a sample's image and its text lie tar headers and its json, 2 to 3 KiB; a second read
# costs more than 32 KiB more.
_MAX_GAP_BYTES = 32 * 1024
# Network file systems fail for a moment (ESTALE, EIO at a failover); a file that stays broken fails
# after 0.6 s.
_RETRY_AFTER_S = (0.1, 0.5)


class _OpenFile:
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


class ShardReader:
    """Reads samples by their location. Safe to call from threads."""

    def __init__(self, files: FilePool | None = None) -> None:
        self._files = files or FilePool()

    def read(self, location: SampleLocation) -> tuple[bytes, bytes]:
        """(image bytes, text bytes). Raises SampleError for a missing member, a short read or a
        lasting OSError.
        """
        for name, size in (("image", location.image_size), ("caption", location.text_size)):
            if size <= 0:
                raise self._error(location, f"no {name}" if size < 0 else f"{name} of zero bytes")
        for wait_s in (*_RETRY_AFTER_S, None):
            try:
                with self._files.open(location.path) as descriptor:
                    return self._read(descriptor, location)
            except OSError as error:
                self._files.forget(location.path)
                if wait_s is None or isinstance(error, FileNotFoundError):
                    raise self._error(location, f"cannot be read: {error}") from error
                time.sleep(wait_s)
        raise AssertionError("unreachable: the last try returns or raises")

    def close(self) -> None:
        self._files.close()

    def _read(self, descriptor: int, location: SampleLocation) -> tuple[bytes, bytes]:
        image = (location.image_offset, location.image_size)
        text = (location.text_offset, location.text_size)
        start = min(image[0], text[0])
        stop = max(sum(image), sum(text))
        if stop - start > image[1] + text[1] + _MAX_GAP_BYTES:
            return self._pread(descriptor, *image, location), self._pread(
                descriptor, *text, location
            )
        region = self._pread(descriptor, start, stop - start, location)
        image_start, text_start = image[0] - start, text[0] - start
        return (
            region[image_start : image_start + image[1]],
            region[text_start : text_start + text[1]],
        )

    def _pread(self, descriptor: int, offset: int, size: int, location: SampleLocation) -> bytes:
        data = os.pread(descriptor, size, offset)
        while (
            len(data) < size
        ):  # a read across a signal or of more than 2 GiB may be short without the file being so
            more = os.pread(descriptor, size - len(data), offset + len(data))
            if not more:
                raise self._error(
                    location, f"shard ends {size - len(data)} bytes early (truncated?)"
                )
            data += more
        return data

    @staticmethod
    def _error(location: SampleLocation, reason: str) -> SampleError:
        return SampleError(reason, location.key, location.shard, location.image_offset)
