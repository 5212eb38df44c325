"""Write one shard: a tar whose bytes depend on its samples alone, and the index of places in it."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.dataset.manifest import INDEX, ShardEntry, file_sha256

# pipeline.data reads an index in blocks of this many rows; with row groups of the same size each
# block is one read
INDEX_ROW_GROUP = 1024
TAR_HEADER_BYTES = 512
WRITE_BYTES = 4 << 20
_NAME_BYTES, _SIZE_AT, _CHECKSUM_AT = 100, 124, 148
# tarfile's defaults are mtime 0, uid and gid 0, no names, mode 0644.
_HEADER = tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT)
# Checksum of a header with an empty name, a size of zero bytes and a blank checksum field.
_BARE_SUM = sum(_HEADER) - sum(_HEADER[_SIZE_AT:136]) - sum(_HEADER[_CHECKSUM_AT:156]) + 8 * 32
_ENCODER = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"))


# The bytes after a name, by its length: padding, and the fields up to the size.
_AFTER_NAME = [
    bytes(_NAME_BYTES - length) + _HEADER[_NAME_BYTES:_SIZE_AT] for length in range(_NAME_BYTES + 1)
]
_AFTER_SIZE, _AFTER_CHECKSUM = _HEADER[136:_CHECKSUM_AT], _HEADER[156:]
_PADDING = [bytes(length) for length in range(tarfile.BLOCKSIZE)]


def tar_header(name: str, size: int) -> bytes:
    """Return the header that tarfile writes for a plain file (ustar, defaults), ten times faster:
    three headers per sample were half of the packer's time. ValueError if name or size does not
    fit."""
    raw_name, raw_size = name.encode("ascii"), b"%011o" % size
    if len(raw_name) > _NAME_BYTES or len(raw_size) != 11:
        raise ValueError(f"{name} of {size} bytes does not fit the header of a tar")
    checksum = _BARE_SUM + sum(raw_name) + sum(raw_size)
    return b"%b%b%b\0%b%06o\0 %b" % (
        raw_name,
        _AFTER_NAME[len(raw_name)],
        raw_size,
        _AFTER_SIZE,
        checksum,
        _AFTER_CHECKSUM,
    )


class ShardWriter:
    """Writes one tar and its index. Their bytes do not depend on the clock, the user or the
    machine."""

    def __init__(self, folder: Path, number: int) -> None:
        self._path = folder / f"{number:06d}.tar"
        self._aside = self._path.with_suffix(".tar.part")
        self._file = self._aside.open("wb", buffering=0)
        self._waiting: list[bytes] = []
        self._num_waiting = self._num_bytes = 0
        self._digest = hashlib.sha256()
        self._index: dict[str, list] = {name: [] for name in INDEX.names}

    @property
    def num_samples(self) -> int:
        return len(self._index["key"])

    def add(self, uid: str, image: bytes, caption: str, metadata: dict) -> None:
        """Append a sample: its image, {uid}.json with `metadata`, and its caption."""
        self._index["key"].append(uid)
        self._member(f"{uid}.jpg", image, "image")
        self._member(f"{uid}.json", _ENCODER.encode(metadata).encode(), "json")
        self._member(f"{uid}.txt", caption.encode(), "text")
        if self._num_waiting >= WRITE_BYTES:
            self._flush()

    def _member(self, name: str, content: bytes, column: str) -> None:
        size = len(content)
        self._index[f"{column}_offset"].append(self._num_bytes + TAR_HEADER_BYTES)
        self._index[f"{column}_size"].append(size)
        self._waiting += (tar_header(name, size), content, _PADDING[-size % tarfile.BLOCKSIZE])
        self._count(TAR_HEADER_BYTES + size + -size % tarfile.BLOCKSIZE)

    def _count(self, added: int) -> None:
        self._num_waiting += added
        self._num_bytes += added

    def _flush(self) -> None:
        """Write and hash what is waiting, so that the checksum needs no second pass over the
        shard."""
        block = memoryview(b"".join(self._waiting))
        self._waiting, self._num_waiting = [], 0
        self._digest.update(block)
        while block:
            block = block[self._file.write(block) :]

    def close(self) -> ShardEntry:
        """Finish tar and index, and give them their names. The paths of the entry are below
        shards/, the final name of the folder."""
        end = 2 * tarfile.BLOCKSIZE
        end += -(self._num_bytes + end) % tarfile.RECORDSIZE
        self._waiting.append(bytes(end))
        self._count(end)
        self._flush()
        self._file.close()
        index = self._path.with_suffix(".index.parquet")
        pq.write_table(pa.table(self._index, schema=INDEX), index, row_group_size=INDEX_ROW_GROUP)
        # not synced: whoever made the folder syncs it whole before it gets its final name
        os.replace(self._aside, self._path)
        return ShardEntry(
            path=f"shards/{self._path.name}",
            num_samples=self.num_samples,
            num_bytes=self._num_bytes,
            sha256=self._digest.hexdigest(),
            index_path=f"shards/{index.name}",
            index_sha256=file_sha256(index),
        )

    def discard(self) -> None:
        """Remove the files of a shard that could not be finished."""
        self._file.close()
        for path in (self._aside, self._path, self._path.with_suffix(".index.parquet")):
            path.unlink(missing_ok=True)
