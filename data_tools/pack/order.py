"""The global shuffle, and which samples go into which shard.

Samples are sorted over all shards by a seeded hash of their uid. Candidates come grouped by query,
and without the shuffle a batch could hold the pictures of one query: near-duplicates as negatives.
Memory does not grow with the data set: DuckDB sorts and joins on disk.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from data_tools.config import PackConfig
from data_tools.ground.aside import written_aside
from data_tools.tables.schema import BALANCED, DataError, DatasetPaths
from data_tools.tables.scratch import files_pattern, scratch_database, sql_text
from data_tools.tables.stream import ROWS_PER_BATCH, open_table

# The rows of a shard are read by row group; this is about a shard of them.
ROWS_PER_GROUP = 8192
# Bytes of a sample's json without its texts: keys and punctuation.
_JSON_BYTES = 420


def write_order(config: PackConfig, paths: DatasetPaths, target: Path) -> None:
    """Write the balanced rows in the order of the shuffle, with the columns that the kept table
    adds, and `tar_bytes`, an estimate of the bytes that each takes in a tar. DataError when a row
    is not in the kept table."""
    num_balanced = pq.read_metadata(paths.table("balanced")).num_rows
    with written_aside(target) as aside:
        # several tasks may write the order at once: each has a scratch of its own
        scratch = aside.with_suffix(".scratch")
        with scratch_database(scratch) as database:
            keyed = scratch / "keyed.parquet"
            _write_keys(paths.table("balanced"), keyed, config.seed)
            database.execute(f"""
                COPY (
                    SELECT c.*, k.* EXCLUDE
                               (uid, caption, width, height, query_ids, keep_probability),
                           {_TAR_BYTES} AS tar_bytes
                    FROM read_parquet({sql_text(files_pattern(keyed))}) c
                    JOIN read_parquet({sql_text(files_pattern(paths.table("kept")))}) k USING (uid)
                    ORDER BY c.order_key, c.uid
                ) TO {sql_text(str(aside))} (FORMAT parquet, ROW_GROUP_SIZE {ROWS_PER_GROUP})
                """)
        if pq.read_metadata(aside).num_rows != num_balanced:
            raise DataError(
                f"some of {num_balanced} balanced pairs are not in {paths.table('kept')}: it was "
                "changed after the crawl. Run the crawl again"
            )


def _padded(size: str) -> str:
    """SQL for the bytes of a tar member: its header, and its content up to a multiple of 512."""
    return f"(512 + ({size} + 511) // 512 * 512)"


_TEXTS = ("url", "page_url", "license", "license_url", "attribution", "source")
_JSON = " + ".join(
    [f"{_JSON_BYTES}", "strlen(array_to_string(captions, ''))", "8 * len(c.query_ids)"]
    + [f"coalesce(strlen({name}), 0)" for name in _TEXTS]
)
_TAR_BYTES = f"{_padded('c.size')} + {_padded('strlen(c.caption)')} + {_padded(f'({_JSON})')}"


def _write_keys(balanced: Path, target: Path, seed: int) -> None:
    """Write the balanced table with `order_key` = xxh64(seed, "pack/" + uid). The prefix makes the
    order independent of balancing, which compares another hash of the uid with a threshold."""
    schema = BALANCED.append(pa.field("order_key", pa.uint64()))
    with open_table(balanced) as source, pq.ParquetWriter(target, schema) as writer:
        for batch in source.iter_batches(ROWS_PER_BATCH, columns=BALANCED.names):
            uids = batch.column("uid").to_pylist()
            keys = [xxhash.xxh64_intdigest(f"pack/{uid}".encode(), seed % 2**64) for uid in uids]
            rows = pa.Table.from_batches([batch]).select(BALANCED.names).cast(BALANCED)
            writer.write_table(rows.append_column("order_key", pa.array(keys, pa.uint64())))


def shard_ranges(config: PackConfig, order: Path) -> list[tuple[int, int]]:
    """Return (first row, row after the last) of each shard."""
    with open_table(order) as file:
        num_rows = file.metadata.num_rows
        if config.samples_per_shard is not None:
            starts = [*range(0, num_rows, config.samples_per_shard), num_rows]
            return list(pairwise(starts))
        starts, filled = [0], 0
        for number, batch in enumerate(file.iter_batches(ROWS_PER_BATCH, columns=["tar_bytes"])):
            sizes = np.asarray(batch.column(0)).tolist()
            for row, size in enumerate(sizes, ROWS_PER_BATCH * number):
                if filled and filled + size > (config.target_shard_bytes or 0):
                    starts.append(row)
                    filled = 0
                filled += size
    return list(pairwise([*starts, num_rows]))
