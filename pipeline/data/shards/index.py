"""Sample number -> where its bytes lie. Indices are read when first needed, a row group at a time,
and kept in an LRU.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.dataset.manifest import Manifest, ShardEntry
from pipeline.data.faults import LoaderError, SampleError, max_bad
from pipeline.data.shards.storage import LocalStorage, Storage

# 75 bytes per row: 4,096 blocks are 315 MB at most. A rank needs one or two blocks per lane at a
# time.
_ROWS_PER_BLOCK = 1024
MAX_BLOCKS = 4096
_NUMBERS = (
    "image_offset",
    "image_size",
    "text_offset",
    "text_size",
    "json_offset",
    "json_size",
)


@dataclass(frozen=True, slots=True)
class SampleLocation:
    """Where a sample's members lie in the tar at `path`: offsets and sizes in bytes. A missing
    member has size -1.
    """

    key: str
    shard: str
    path: str
    image_offset: int
    image_size: int
    text_offset: int
    text_size: int
    json_offset: int = -1
    json_size: int = -1


@dataclass(frozen=True, slots=True)
class _Block:
    keys: pa.Array
    numbers: np.ndarray  # (rows, 6) int64, columns as _NUMBERS


class SampleIndex:
    """Finds samples of a manifest by number, 0 .. num_samples-1 in the order of the shards. Safe to
    call from threads.
    """

    def __init__(
        self, manifest: Manifest, storage: Storage | None = None, max_blocks: int = MAX_BLOCKS
    ) -> None:
        """`storage` defaults to the manifest's folder."""
        self._max_blocks = max_blocks
        self._manifest = manifest
        self._storage = storage or LocalStorage(str(manifest.root))
        self._ends = list(accumulate(shard.num_samples for shard in manifest.shards))
        self._blocks: OrderedDict[tuple[int, int], _Block] = OrderedDict()
        self._lock = threading.Lock()

    def locate(self, sample: int) -> SampleLocation:
        """Raises SampleError if the shard's index cannot be read or does not fit the shard."""
        # A shard without samples ends where the one before it does; bisect_right passes over it.
        number = bisect_right(self._ends, sample)
        shard = self._manifest.shards[number]
        row = sample - self._ends[number] + shard.num_samples
        try:
            block = self._block(number, row // _ROWS_PER_BLOCK)
        except (OSError, pa.ArrowException, ValueError) as error:
            raise SampleError(
                f"index {shard.index_path} is not usable: {error}",
                f"row {row}",
                shard.path,
                -1,
            ) from error
        key = block.keys[row % _ROWS_PER_BLOCK].as_py()
        numbers = block.numbers[row % _ROWS_PER_BLOCK].tolist()
        image_offset, image_size, text_offset, text_size, json_offset, json_size = numbers
        ends = (image_offset + image_size, text_offset + text_size, json_offset + json_size)
        if max(ends) > shard.num_bytes:
            raise SampleError("index points past the shard's end", key, shard.path, image_offset)
        return SampleLocation(key, shard.path, self._storage.path(shard.path), *numbers)

    def check_first_shard(self, max_bad_fraction: float) -> None:
        """Raises LoaderError if the first shard lacks all its images or captions, or more of them
        than the run would bear.
        """
        shard = next(shard for shard in self._manifest.shards if shard.num_samples)
        try:
            with pq.ParquetFile(self._storage.open_table(shard.index_path)) as file:
                table = file.read(columns=["image_size", "text_size"], use_threads=False)
        except OSError as error:
            raise LoaderError(
                f"index {shard.index_path} cannot be read: {error}. Correct the access to this "
                f"storage, or restore the file"
            ) from error
        except (pa.ArrowException, ValueError) as error:
            raise LoaderError(
                f"index {shard.index_path} cannot be read: {error}. Pack the data set again"
            ) from error
        for name, column in (("image", "image_size"), ("caption", "text_size")):
            num_missing = int((column_numbers(table, column) <= 0).sum())
            if num_missing == len(table) or num_missing > max_bad(len(table), max_bad_fraction):
                raise LoaderError(
                    f"{num_missing} of {len(table)} samples in {shard.path} have no {name}: "
                    f"training needs pairs of image and text (.txt); pack the data set with both"
                )

    def _block(self, number: int, wanted: int) -> _Block:
        with self._lock:
            block = self._blocks.get((number, wanted))
            if block is not None:
                self._blocks.move_to_end((number, wanted))
                return block
        # Outside the lock: two threads may read the same index at once, which costs a millisecond
        # and is harmless.
        blocks = self._read_blocks(self._manifest.shards[number], wanted)
        with self._lock:
            for position, block in blocks.items():
                # The other blocks of a large row group are kept while there is room; they never
                # push out one in use.
                if position == wanted or len(self._blocks) < self._max_blocks:
                    self._blocks[number, position] = block
            while len(self._blocks) > self._max_blocks:
                self._blocks.popitem(last=False)
        return blocks[wanted]

    def _read_blocks(self, shard: ShardEntry, wanted: int) -> dict[int, _Block]:
        """Every block that the row groups around the wanted one cover whole."""
        first_row = wanted * _ROWS_PER_BLOCK
        stop_row = min(first_row + _ROWS_PER_BLOCK, shard.num_samples)
        with pq.ParquetFile(self._storage.open_table(shard.index_path)) as file:
            if file.metadata.num_rows != shard.num_samples:
                raise ValueError(
                    f"{file.metadata.num_rows} rows, the manifest says {shard.num_samples}"
                )
            ends = np.cumsum(
                [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            )
            groups = range(
                int(np.searchsorted(ends, first_row, "right")),
                int(np.searchsorted(ends, stop_row)) + 1,
            )
            table = file.read_row_groups(
                list(groups), columns=["key", *_NUMBERS], use_threads=False
            )
        start = int(ends[groups.start - 1]) if groups.start else 0
        keys = table.column("key").combine_chunks()
        numbers = np.stack([column_numbers(table, name) for name in _NUMBERS], axis=1)
        blocks = {}
        for position in range(
            -(-start // _ROWS_PER_BLOCK), -(-(start + len(keys)) // _ROWS_PER_BLOCK)
        ):
            low = position * _ROWS_PER_BLOCK - start
            high = min(low + _ROWS_PER_BLOCK, shard.num_samples - start)
            if high <= len(keys):
                # Copied, so that a block kept does not keep the whole row group in memory.
                blocks[position] = _Block(
                    pa.concat_arrays([keys.slice(low, high - low)]), numbers[low:high].copy()
                )
        return blocks


def column_numbers(table: pa.Table, name: str) -> np.ndarray:
    """A column without nulls. Arrow's own to_numpy would import pandas: 0.7 s of a worker's first
    sample.
    """
    return np.from_dlpack(table.column(name).combine_chunks())
