"""The work of one process on one shard: read its images from the crawl's tars, write its tar and
index, and last its manifest entry. A shard with an entry is complete.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.dataset.manifest import ShardEntry, file_sha256
from data_tools.dataset.shard_writer import ShardWriter
from data_tools.ground.aside import write_text_aside
from data_tools.tables.schema import DataError

OPEN_TARS = 256
# Samples that are announced to the kernel before they are read: a shuffled shard reads the crawl at
# random places, and the device can reorder and overlap reads that it knows of.
READ_AHEAD = 512
SAMPLES_PER_BATCH = 2048
METADATA = (
    "url",
    "page_url",
    "license",
    "license_url",
    "attribution",
    "source",
    "query_ids",
    "captions",
    "keep_probability",
    "width",
    "height",
    "original_width",
    "original_height",
    "sha256",
)
_COLUMNS = ("uid", "shard", "offset", "size", "caption", *METADATA)


def entry_path(folder: Path, number: int) -> Path:
    """Where the manifest entry of a finished shard is kept until all shards are finished."""
    return folder / f"{number:06d}.entry.json"


def finished_shard(folder: Path, number: int) -> ShardEntry | None:
    """Return the entry of a shard that an earlier run finished, or None. The shard's bytes are read
    and compared with its checksums, because a machine that went down may have lost some."""
    try:
        entry = ShardEntry(**json.loads(entry_path(folder, number).read_text()))
        tar, index = (folder / Path(path).name for path in (entry.path, entry.index_path))
        whole = tar.stat().st_size == entry.num_bytes and file_sha256(tar) == entry.sha256
        return entry if whole and file_sha256(index) == entry.index_sha256 else None
    except (OSError, ValueError, TypeError):
        return None


def write_shard(
    order: Path, crawl: Path, folder: Path, number: int, start: int, stop: int
) -> ShardEntry:
    """Write rows `start` to `stop` of the order as shard `number`. DataError names a tar of the
    crawl that changed since the crawl. A shard that failed leaves no files."""
    images, writer = ImageReader(crawl), ShardWriter(folder, number)
    try:
        for rows in _row_batches(order, start, stop):
            uids, shards, offsets, sizes, captions, *values = rows
            places = list(zip(shards, offsets, sizes))
            for position, (uid, place) in enumerate(zip(uids, places)):
                if position % READ_AHEAD == 0:
                    images.announce(places[position : position + READ_AHEAD])
                metadata = sample_metadata([column[position] for column in values])
                writer.add(uid, images.read(*place), captions[position], metadata)
        entry = writer.close()
    except BaseException:
        writer.discard()
        raise
    finally:
        images.close()
    write_text_aside(entry_path(folder, number), json.dumps(entry._asdict()))
    return entry


def sample_metadata(values: Sequence) -> dict:
    """Return the content of {uid}.json, from the columns METADATA. keep_probability is a float32,
    for which seven digits suffice."""
    metadata = dict(zip(METADATA, values))
    metadata["keep_probability"] = float(f"{metadata['keep_probability']:.7g}")
    return metadata


@lru_cache(maxsize=1)
def _open_order(path: Path, modified_ns: int) -> pq.ParquetFile:
    """Open the order once per process, which writes many shards: the file's footer grows with the
    data set."""
    del modified_ns
    return pq.ParquetFile(path)


def _row_batches(order: Path, start: int, stop: int) -> Iterator[list[list]]:
    """Yield the columns _COLUMNS of the rows, as lists, a few thousand rows at a time."""
    file = _open_order(order, order.stat().st_mtime_ns)
    first = 0
    for group in range(file.num_row_groups):
        end = first + file.metadata.row_group(group).num_rows
        if first < stop and end > start:
            table = file.read_row_group(group, columns=list(_COLUMNS)).select(list(_COLUMNS))
            low, high = max(start - first, 0), min(stop, end) - first
            yield from _slices(table.slice(low, high - low))
        first = end


def _slices(table: pa.Table) -> Iterator[list[list]]:
    for low in range(0, table.num_rows, SAMPLES_PER_BATCH):
        part = table.slice(low, SAMPLES_PER_BATCH)
        yield [column.to_pylist() for column in part.columns]


class ImageReader:
    """Reads images by place from the tars of the crawl. The last OPEN_TARS tars stay open."""

    def __init__(self, crawl: Path) -> None:
        self._crawl = crawl
        self._open: OrderedDict[str, int] = OrderedDict()

    def announce(self, places: Sequence[tuple[str, int, int]]) -> None:
        """Tell the kernel what will be read, sorted by tar and offset."""
        if not hasattr(os, "posix_fadvise"):  # macOS
            return
        for shard, offset, size in sorted(places):
            os.posix_fadvise(self._descriptor(shard), offset, size, os.POSIX_FADV_WILLNEED)

    def read(self, shard: str, offset: int, size: int) -> bytes:
        """Return a JPEG file. DataError if there is none at that place, or the tar is gone."""
        content = os.pread(self._descriptor(shard), size, offset)
        if len(content) != size or not content.startswith(b"\xff\xd8"):
            raise DataError(
                f"{self._crawl / shard} has no JPEG at {offset}, as it had after the crawl: it was "
                "changed since. Delete its part and run the crawl again"
            )
        return content

    def _descriptor(self, shard: str) -> int:
        if shard not in self._open:
            try:
                self._open[shard] = os.open(self._crawl / shard, os.O_RDONLY)
            except FileNotFoundError:
                raise DataError(f"{self._crawl / shard} is gone: run the crawl again") from None
            if len(self._open) > OPEN_TARS:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(shard)
        return self._open[shard]

    def close(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()
