"""Writes safetensors in one pass: the snapshot's bytes go to the disk and into the checksum.

Only the writing is our own: the safetensors library gives no checksum, and one computed from the
file afterwards would also approve bytes that the disk has damaged. The library does the reading.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import xxhash

from pipeline.engine.checkpoint.errors import CheckpointError
from pipeline.engine.checkpoint.record import FileRecord

BLOCK_BYTES = 16 * 2**20


def header(sizes: Sequence[tuple[str, int]]) -> bytes:
    """Header of a safetensors file of float32 vectors that lie one after the other.

    sizes: (name, number of elements) of each vector, in order.
    """
    if sys.byteorder != "little":
        raise CheckpointError("safetensors are little-endian; this machine is not")
    content, end = {}, 0
    for name, length in sizes:
        content[name] = {"dtype": "F32", "shape": [length], "data_offsets": [end, end + 4 * length]}
        end += 4 * length
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that mapped tensors are aligned
    return struct.pack("<Q", len(text)) + text


def write_blocks(path: Path, blocks: Iterable[bytes | memoryview]) -> FileRecord:
    """Write a file and return its size and checksum. When this returns, the file is on the disk and
    not only in the page cache. Raises OSError."""
    checksum, num_bytes = xxhash.xxh3_128(), 0
    with path.open("wb") as file:
        for block in blocks:
            file.write(block)
            checksum.update(block)
            num_bytes += len(block)
        file.flush()
        os.fsync(file.fileno())
    return FileRecord(path.name, num_bytes, checksum.hexdigest())


def problem_of(folder: Path, expected: FileRecord) -> str | None:
    """Describe what is wrong with a file; None if size and checksum are those of `expected`."""
    path = folder / expected.name
    try:
        found = path.stat().st_size
        if found != expected.num_bytes:
            return f"{expected.name} has {found} of {expected.num_bytes} bytes"
        checksum = xxhash.xxh3_128()
        for block in _blocks(path):
            checksum.update(block)
    except FileNotFoundError:
        return f"{expected.name} is missing"
    except OSError as error:
        return f"{expected.name} cannot be read ({error})"
    if checksum.hexdigest() != expected.xxh3_128:
        return f"{expected.name} does not have its checksum"
    return None


def _blocks(path: Path) -> Iterator[memoryview]:
    block = bytearray(BLOCK_BYTES)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(block):
            yield memoryview(block)[:size]
