"""All rows of many tables in the order of their uids, in bounded memory.

The rows are divided among files ("parts") by the first digits of their uid, which are uniformly
distributed; then each part fits into memory and is sorted there. So every row is written and read
once more, however many rows there are. (DuckDB's ORDER BY runs out of memory on rows as wide as
these: 2.0.0 fails on 360 MB with a limit of 250 MB.)
"""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pyarrow.parquet as pq

from data_tools.tables.schema import DataError
from data_tools.tables.stream import ROWS_PER_BATCH, open_table

# A part is in memory as it was read, as it is sorted, and as what the merge makes of it.
COPIES = 4
# Arrow addresses the bytes of a string column by 32-bit offsets.
MAX_PART_BYTES = 1 << 30
# Files that the process may have open besides the parts.
OTHER_FILES = 64
NUM_PREFIXES = 1 << 16  # 4 hex digits

Batches = Iterator[pa.RecordBatch]


@contextmanager
def sorted_by_uid(
    files: Sequence[Path],
    schema: pa.Schema,
    scratch: Path,
    memory_bytes: float,
    shrink: Callable[[Batches], Batches],
) -> Iterator[Batches]:
    """Yield all rows of the parquet files in batches, in the order of their uids.

    `shrink` merges consecutive rows of one uid, so that a pair repeated millions of times cannot
    fill memory. `scratch` is a folder that is made here and removed afterwards. DataError names a
    table that cannot be read.
    """
    shutil.rmtree(scratch, ignore_errors=True)  # a killed run left it
    scratch.mkdir(parents=True)
    try:
        parts = _divide(files, schema, scratch, _num_parts(files, memory_bytes), shrink)
        yield (batch for part in parts for batch in _sorted_part(part))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _num_parts(files: Sequence[Path], memory_bytes: float) -> int:
    num_bytes = 0
    for file in files:
        table = _metadata(file)
        num_bytes += sum(table.row_group(n).total_byte_size for n in range(table.num_row_groups))
    num_parts = int(num_bytes / min(memory_bytes / COPIES, MAX_PART_BYTES)) + 1
    # each part is an open file while the rows are divided
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if num_parts > soft - OTHER_FILES and soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    if num_parts > soft - OTHER_FILES:
        raise DataError(
            f"{num_bytes / 1e9:.0f} GB of rows need {num_parts} open files and this process may "
            f"have {soft}: raise match.merge_memory_gb, or the limit (ulimit -n)"
        )
    return num_parts


def _metadata(file: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(file)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file} cannot be read: {error}; delete it and run again") from error


def _divide(
    files: Sequence[Path],
    schema: pa.Schema,
    scratch: Path,
    num_parts: int,
    shrink: Callable[[Batches], Batches],
) -> list[Path]:
    """Write the rows to `num_parts` files, each of which holds a range of uids."""
    paths = [scratch / f"{number:05d}.arrow" for number in range(num_parts)]
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with ExitStack() as stack:
        writers = [stack.enter_context(pa.ipc.new_file(p, schema, options=options)) for p in paths]
        for file in files:
            with open_table(file) as table:
                for batch in table.iter_batches(ROWS_PER_BATCH, columns=schema.names):
                    for rows in shrink(iter([_in_order(batch.cast(schema))])):
                        # the uids are sorted, so the rows of a part are consecutive
                        borders = np.searchsorted(_parts(rows["uid"], num_parts), range(num_parts))
                        stops = np.append(borders[1:], rows.num_rows)
                        for part in np.flatnonzero(stops > borders):
                            piece = rows.slice(borders[part], stops[part] - borders[part])
                            writers[part].write_batch(piece)
    return paths


def _parts(uids: pa.Array, num_parts: int) -> np.ndarray:
    """Return the number of each uid's part, which follows from its first 4 hex digits."""
    prefixes = pc.binary_slice(uids.cast(pa.binary()), 0, 4)
    digits = np.frombuffer(b"".join(prefixes.to_pylist()), np.uint8).reshape(-1, 4)
    values = np.where(digits >= ord("a"), digits - (ord("a") - 10), digits - ord("0"))
    prefix = values.astype(np.int64) @ np.array([4096, 256, 16, 1])
    return prefix * num_parts // NUM_PREFIXES


def _in_order(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.take(pc.sort_indices(batch["uid"]))


def _sorted_part(part: Path) -> Batches:
    with pa.OSFile(str(part)) as source, pa.ipc.open_file(source) as stored:
        stored_rows = stored.read_all().combine_chunks().to_batches()
    part.unlink()  # its rows are in memory now
    if (
        len(stored_rows) > 1
    ):  # combine_chunks leaves several chunks where 32-bit offsets do not suffice
        raise DataError(f"{part} holds 2 GB in a column: lower match.merge_memory_gb")
    for _ in range(len(stored_rows)):
        ordered = _in_order(stored_rows.pop())
        for start in range(0, ordered.num_rows, ROWS_PER_BATCH):
            yield ordered.slice(start, ROWS_PER_BATCH)
