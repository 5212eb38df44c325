"""One shard: a tar whose bytes depend on its samples alone, and the index of what lies where in
it."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.manifest import INDEX, ShardEntry, file_sha256

# pipeline.data reads an index in blocks of this many rows; equal row groups make that one read each
INDEX_ROW_GROUP = 1024
TAR_HEADER_BYTES = 512


class _HashedFile(io.RawIOBase):
    """A file being written, and the sha256 of what was written: no second pass over the shard."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest, self.num_bytes = file, hashlib.sha256(), 0

    def write(self, block: bytes) -> int:  # type: ignore[override]
        self.digest.update(block)
        self.num_bytes += len(block)
        return self._file.write(block)

    def tell(self) -> int:
        return self.num_bytes


class ShardWriter:
    """One tar and its index. Nothing in it depends on the clock, the user or the machine."""

    def __init__(self, folder: Path, number: int) -> None:
        self._path = folder / f"{number:06d}.tar"
        self._file = self._path.open("wb")
        self._hashed = _HashedFile(self._file)
        self._tar = tarfile.open(fileobj=self._hashed, mode="w", format=tarfile.USTAR_FORMAT)
        self._index: dict[str, list] = {name: [] for name in INDEX.names}

    @property
    def keys(self) -> list[str]:
        return self._index["key"]

    @property
    def num_samples(self) -> int:
        return len(self.keys)

    def add(self, uid: str, image: bytes, caption: str, metadata: dict) -> None:
        text = json.dumps(metadata, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        self._index["key"].append(uid)
        self._member(f"{uid}.jpg", image, "image")
        self._member(f"{uid}.json", text.encode(), "json")
        self._member(f"{uid}.txt", caption.encode(), "text")

    def _member(self, name: str, content: bytes, column: str) -> None:
        info = tarfile.TarInfo(name)  # its defaults: mtime 0, uid and gid 0, no names, mode 0644
        info.size = len(content)
        self._index[f"{column}_offset"].append(self._hashed.num_bytes + TAR_HEADER_BYTES)
        self._index[f"{column}_size"].append(info.size)
        self._tar.addfile(info, io.BytesIO(content))

    def close(self) -> ShardEntry:
        """Finish tar and index. The paths of the entry are below shards/, where the folder will
        be."""
        self._tar.close()
        self._file.close()
        index = self._path.with_suffix(".index.parquet")
        pq.write_table(pa.table(self._index, schema=INDEX), index, row_group_size=INDEX_ROW_GROUP)
        return ShardEntry(
            path=f"shards/{self._path.name}",
            num_samples=self.num_samples,
            num_bytes=self._hashed.num_bytes,
            sha256=self._hashed.digest.hexdigest(),
            index_path=f"shards/{index.name}",
            index_sha256=file_sha256(index),
        )
