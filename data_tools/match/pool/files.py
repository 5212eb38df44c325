"""The files of the pools: local ones, and those at any address that fsspec can open."""

from __future__ import annotations

import glob
import io
import lzma
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any

import aiohttp
import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from data_tools.config import PoolConfig
from data_tools.tables.schema import DataError
from data_tools.text.streams import decompressed, other_kind, utf8

# Fields by which a file system says that a file changed; the first one present is used.
VERSION_FIELDS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")
FORMATS = (".parquet", ".csv", ".tsv", ".jsonl", ".json")
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
# What libraries say of a broken file, and what it means
MEANINGS = {
    "Truncated compressed stream": "its compressed bytes end early",
    "ended before the end-of-stream marker": "its compressed bytes end early",
    "inflate failed": "its compressed bytes are broken, or others follow them",
    "decompress failed": "its compressed bytes are broken, or others follow them",
    "Corrupt input data": "its compressed bytes are broken",
    "magic bytes not found in footer": "it is no whole parquet file: cut off, or another format",
    "Parquet file size is 0": "it is empty, and so no parquet file",
    "straddling object": "a row is longer than 16 MiB",
}
CONNECT_TIMEOUT_S = 30
READ_TIMEOUT_S = 60
REMOTE_BLOCK_BYTES = 8 << 20


class FileError(ValueError):
    """What is wrong within a file, and the fix; `reading` puts the file's name before it."""


@dataclass(frozen=True)
class PoolFile:
    """One file of a pool."""

    name: str
    """Absolute path, or URL."""
    size: int
    version: str
    """A value that changes when the content does: time of change, or ETag."""

    @property
    def kind(self) -> str:
        """The format: ".parquet", ".csv", ...; "" if it is unknown."""
        path = PurePosixPath(self.name.split("?")[0] if self.is_remote else self.name)
        packed = path.suffix in COMPRESSED
        suffix = PurePosixPath(path.stem).suffix if packed else path.suffix
        known = suffix in FORMATS and not (packed and suffix == ".parquet")
        return suffix if known else ""

    @property
    def is_remote(self) -> bool:
        return "://" in self.name


def find_files(config: PoolConfig) -> list[PoolFile]:
    """Every file of `config.paths` once, ordered by name. DataError names all patterns that match
    no file or can't be listed."""
    files: dict[str, PoolFile] = {}
    problems = []
    for pattern in config.paths:
        try:
            matching, folder = _expand(pattern, config.storage_options)
        except Exception as error:  # whatever the file system behind the address raises
            problems.append(f"sources.pool.paths: {pattern!r} cannot be listed: {reason(error)}")
            continue
        if not matching and folder:
            problems.append(
                f"sources.pool.paths: {pattern!r} is no file but a folder: name the files in it, "
                f"such as {pattern.rstrip('/') + '/*.parquet'!r}"
            )
        elif not matching:
            problems.append(f"sources.pool.paths: {pattern!r} matches no file")
        files.update((file.name, file) for file in matching)
    if problems:
        raise DataError("the pool cannot be read:\n  " + "\n  ".join(problems))
    return [files[name] for name in sorted(files)]


@contextmanager
def open_file(file: PoolFile, config: PoolConfig) -> Iterator[IO[bytes]]:
    """Open a file for its bytes as they are stored; the stream is seekable."""
    if not file.is_remote:
        with open(file.name, "rb") as stream:
            yield stream
        return
    system, path = _file_system(file.name, config.storage_options)
    with system.open(path, "rb", block_size=REMOTE_BLOCK_BYTES) as stream:
        yield stream


@contextmanager
def open_text(file: PoolFile, config: PoolConfig) -> Iterator[io.BufferedReader]:
    """Open a file for its text as UTF-8, decompressed. FileError if it is a table of another kind,
    such as parquet."""
    with open_file(file, config) as raw:
        stream = decompressed(raw)
        if other := other_kind(stream.peek(16)):
            raise FileError(f"by its first bytes it is {other}")
        yield utf8(stream)


@contextmanager
def reading(file: PoolFile) -> Iterator[None]:
    """Turn errors of reading in the `with` block into a DataError that names the file."""
    try:
        yield
    except DataError:
        raise
    except FileError as error:
        raise DataError(f"{file.name}: {error}") from error
    except (
        pa.ArrowException,
        OSError,
        EOFError,
        ValueError,
        lzma.LZMAError,
        aiohttp.ClientError,
    ) as error:
        raise DataError(
            f"{file.name} cannot be read to its end: {reason(error)}; replace it, or leave it out "
            "of sources.pool.paths"
        ) from error


def _expand(pattern: str, options: dict[str, Any]) -> tuple[list[PoolFile], bool]:
    """(the files, whether there is a folder of that name)."""
    system, path = _file_system(pattern, options)
    remote = not isinstance(system, LocalFileSystem)
    infos: Iterable[dict[str, Any]]
    try:
        if _is_pattern(pattern, system, path):
            infos = system.glob(path, detail=True).values()
        else:
            infos = [system.info(path)]
    except FileNotFoundError:
        return [], False
    infos = list(infos)
    files = [info for info in infos if info["type"] == "file"]
    names = [system.unstrip_protocol(info["name"]) if remote else info["name"] for info in files]
    found = [_pool_file(name, info, remote) for name, info in zip(names, files)]
    return found, len(files) < len(infos)


def _is_pattern(address: str, system: Any, path: str) -> bool:
    if address.startswith(("http://", "https://")):
        return "*" in path  # "?" begins a query there
    return glob.has_magic(path) and not system.isfile(path)


def _pool_file(name: str, info: dict[str, Any], remote: bool) -> PoolFile:
    if not remote:
        state = os.stat(name)
        return PoolFile(name, state.st_size, str(state.st_mtime_ns))
    version = next((str(info[field]) for field in VERSION_FIELDS if info.get(field)), "")
    return PoolFile(name, int(info.get("size") or 0), version)


def _file_system(address: str, options: dict[str, Any]) -> tuple[Any, str]:
    if address.startswith(("http://", "https://")):
        limits = {"sock_connect": CONNECT_TIMEOUT_S, "sock_read": READ_TIMEOUT_S}
        timeout = aiohttp.ClientTimeout(total=None, **limits)
        options = {"client_kwargs": {"timeout": timeout}, **options}
    return fsspec.core.url_to_fs(address, **options)


def reason(error: BaseException) -> str:
    """What an error of a library means, with its own words in brackets."""
    text = str(error) or type(error).__name__
    for words, meaning in MEANINGS.items():
        if words in text:
            return f"{meaning} ({text})"
    return text
