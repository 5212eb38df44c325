"""Where a data set's files lie: a folder, or an object store behind fsspec."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol

from data_tools.ground.aside import write_bytes_aside
from pipeline.data.shards.files import FilePool
from pipeline.data.shards.wrong_answer import WrongAnswer

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# Limit for one ranged read, including the retries of the store's own client.
_READ_TIMEOUT_S = 120.0
_COPY_BYTES = 8 * 1024**2


class LocalFile(NamedTuple):
    """A file that this process and its workers can open at `path` as long as `handle` is kept."""

    path: str
    handle: IO[bytes] | None


class ByteReader(Protocol):
    """Ranges of files by path. Safe to call from threads."""

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Fewer than `size` bytes only at the file's end; raises OSError."""

    def forget(self, path: str) -> None:
        """Call after an error: the next read opens or fetches this file anew."""

    def close(self) -> None: ...


class Storage(Protocol):
    def path(self, relative: str) -> str: ...

    def open_table(self, relative: str) -> Any:
        """What pyarrow's ParquetFile reads from; raises OSError."""

    def read_file(self, relative: str) -> bytes:
        """Raises OSError."""

    def write_file(self, relative: str, data: bytes) -> None:
        """Write a file whole or not at all, over one that is there."""

    def local_file(self, relative: str) -> LocalFile:
        """The file itself, or a copy of an object. Raises OSError."""

    def size(self, relative: str) -> int:
        """Size of a file in bytes. Raises FileNotFoundError, or another OSError."""

    def reader(self, read_ahead_bytes: int, num_lanes: int) -> ByteReader: ...


class LocalStorage:
    """A folder on a local or parallel file system."""

    def __init__(self, root: str) -> None:
        self._root = root

    def path(self, relative: str) -> str:
        return os.path.join(self._root, relative)

    def open_table(self, relative: str) -> str:
        return self.path(relative)

    def read_file(self, relative: str) -> bytes:
        with open(self.path(relative), "rb") as file:
            return file.read()

    def write_file(self, relative: str, data: bytes) -> None:
        write_bytes_aside(Path(self.path(relative)), data)

    def local_file(self, relative: str) -> LocalFile:
        return LocalFile(self.path(relative), None)

    def size(self, relative: str) -> int:
        return os.stat(self.path(relative)).st_size

    def reader(self, read_ahead_bytes: int, num_lanes: int) -> FilePool:
        """Ignores both arguments: the kernel reads ahead by itself."""
        return FilePool()


class RemoteStorage:
    """A folder of an object store. Credentials and endpoints are fsspec's own configuration
    (~/.config/fsspec, FSSPEC_* and the store's variables).
    """

    def __init__(self, filesystem: AbstractFileSystem, root: str) -> None:
        self._filesystem = filesystem
        self._root = root.rstrip("/")

    def path(self, relative: str) -> str:
        return f"{self._root}/{relative}"

    def open_table(self, relative: str) -> Any:
        # The footer and a row group's columns: two requests, where a file object without a cache
        # would make one a column. Whole small indices come with the first.
        path = self.path(relative)
        with _named(path):
            return self._filesystem.open(path, "rb", cache_type="readahead", block_size=256 * 1024)

    def read_file(self, relative: str) -> bytes:
        path = self.path(relative)
        with _named(path):
            return bytes(self._filesystem.cat_file(path))

    def read_range(self, relative: str, start: int, stop: int) -> bytes:
        """Bytes start..stop of a file, as `reader` asks for them. Raises OSError if the store
        sends another number of bytes."""
        return _read_range(self._filesystem, self.path(relative), start, stop)

    def write_file(self, relative: str, data: bytes) -> None:
        path = self.path(relative)
        with _named(path):
            self._filesystem.pipe_file(path, data)

    def local_file(self, relative: str) -> LocalFile:
        # A file without a name, so that nothing is left behind even after kill -9. Workers open it
        # through this process's /proc entry.
        copy = tempfile.TemporaryFile()
        path = self.path(relative)
        with _named(path), self._filesystem.open(path, "rb", block_size=_COPY_BYTES) as file:
            shutil.copyfileobj(file, copy, _COPY_BYTES)
        copy.flush()
        return LocalFile(f"/proc/{os.getpid()}/fd/{copy.fileno()}", copy)

    def size(self, relative: str) -> int:
        path = self.path(relative)
        with _named(path):
            size = self._filesystem.info(path)["size"]
        if size is None:
            raise OSError(f"{path}: the storage does not say how large it is")
        return int(size)

    def reader(self, read_ahead_bytes: int, num_lanes: int) -> RangeReader:
        # Two ranges per lane: the one it reads in, and the next one that it has begun.
        return RangeReader(
            self._filesystem,
            read_ahead_bytes=read_ahead_bytes,
            max_cached_bytes=2 * num_lanes * read_ahead_bytes,
        )


class _Range:
    __slots__ = ("data", "start", "stop")

    def __init__(self, start: int, stop: int) -> None:
        self.start = start
        self.stop = stop
        self.data: Future[bytes] = Future()


class RangeReader:
    """Ranged reads of an object store, each taking what its lane will read next with it.

    A request costs 10 to 100 ms whatever its size up to a megabyte, and a lane goes on where it
    stopped: `read_ahead_bytes` is a chunk's mean size, so a chunk costs one or two requests instead
    of one a sample. Threads that want the same range wait for one request.
    """

    def __init__(
        self, filesystem: AbstractFileSystem, *, read_ahead_bytes: int, max_cached_bytes: int
    ) -> None:
        self.num_requests = 0
        self._filesystem = filesystem
        self._read_ahead_bytes = read_ahead_bytes
        self._max_cached_bytes = max_cached_bytes
        self._cached_bytes = 0
        self._ranges: OrderedDict[tuple[str, int], _Range] = OrderedDict()
        self._by_path: dict[str, list[_Range]] = {}
        self._lock = threading.Lock()

    def read(self, path: str, offset: int, size: int) -> bytes:
        with self._lock:
            found, is_new = self._range(path, offset, offset + size)
        if is_new:
            self._fetch(path, found)
        try:
            data = found.data.result(_READ_TIMEOUT_S)
        except FutureTimeout as error:  # an OSError of its own from Python 3.11 on
            raise OSError(f"{path}: no answer within {_READ_TIMEOUT_S:.0f} s") from error
        return data[offset - found.start : offset - found.start + size]

    def forget(self, path: str) -> None:
        with self._lock:
            for found in self._by_path.pop(path, []):
                del self._ranges[path, found.start]
                self._cached_bytes -= found.stop - found.start

    def close(self) -> None:
        with self._lock:
            self._ranges.clear()
            self._by_path.clear()
            self._cached_bytes = 0

    @property
    def cached_bytes(self) -> int:
        return self._cached_bytes

    def _range(self, path: str, start: int, stop: int) -> tuple[_Range, bool]:
        """The range that holds start..stop, and whether the caller has to fetch it."""
        known = self._by_path.setdefault(path, [])
        for found in known:
            if found.start <= start and stop <= found.stop:
                self._ranges.move_to_end((path, found.start))
                return found, False
        end = max(stop, start + self._read_ahead_bytes)
        # A lane starts inside its chunk and wraps to the chunk's beginning. Stop where an already
        # fetched range begins, so that no byte is fetched twice.
        end = max(stop, min([end, *(found.start for found in known if found.start >= stop)]))
        found = _Range(start, end)
        old = self._ranges.pop((path, start), None)
        if old is not None:  # it starts at the same byte but ends too early
            known.remove(old)
            self._cached_bytes -= old.stop - old.start
        self._ranges[path, start] = found
        known.append(found)
        self._cached_bytes += end - start
        self._evict(found)
        return found, True

    def _evict(self, newest: _Range) -> None:
        while self._cached_bytes > self._max_cached_bytes and len(self._ranges) > 1:
            (path, _), oldest = self._ranges.popitem(last=False)
            if oldest is newest:
                break
            self._cached_bytes -= oldest.stop - oldest.start
            self._by_path[path].remove(oldest)
            if not self._by_path[path]:
                del self._by_path[path]

    def _fetch(self, path: str, wanted: _Range) -> None:
        self.num_requests += 1
        try:
            data = _read_range(self._filesystem, path, wanted.start, wanted.stop, at_end=True)
        except BaseException as error:
            self.forget(path)
            wanted.data.set_exception(error)
        else:
            wanted.data.set_result(data)


def _read_range(
    filesystem: AbstractFileSystem, path: str, start: int, stop: int, at_end: bool = False
) -> bytes:
    """A range of an object; with `at_end` it may be shorter, where the object ends. OSError for all
    that goes wrong."""
    with _named(path):
        data = bytes(filesystem.cat_file(path, start=start, end=stop))
    if len(data) > stop - start or (len(data) < stop - start and not at_end):
        raise WrongAnswer(
            f"{path}: asked for bytes {start}-{stop - 1}, the storage sends {len(data)} bytes"
        )
    return data


@contextmanager
def _named(path: str) -> Iterator[None]:
    """All errors are OSErrors that name the object: clients of stores raise many kinds."""
    try:
        yield
    except Exception as error:
        text = str(error) or repr(error)
        if isinstance(error, OSError) and (path in text or "://" in text):
            raise
        kinds = (FileNotFoundError, PermissionError)
        kind = next((kind for kind in kinds if isinstance(error, kind)), OSError)
        raise kind(f"{path}: {text}") from error


def open_storage(folder: str) -> LocalStorage | RemoteStorage:
    """`folder` is a path, or a URL with a protocol that fsspec knows. Raises ValueError for one
    that it does not.
    """
    if "://" not in folder:
        return LocalStorage(folder)
    import fsspec

    try:
        filesystem, root = fsspec.core.url_to_fs(folder)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{folder} cannot be opened: {error}") from error
    if "http" in filesystem.protocol:
        from pipeline.data.shards.http import CheckedHTTP

        filesystem = CheckedHTTP(**filesystem.storage_options)
    return RemoteStorage(filesystem, root)
