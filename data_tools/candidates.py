"""The candidates stage: merge what pools and search servers gave into one table, a row per pair.

The same pair can come from several files, sources and queries; it becomes one row with the query
ids of all. Which of the equal pairs gives the other fields depends on their content alone, so the
order of files and the number of processes change nothing: a searched pair comes before a pool's,
because it has licence and author; then the smallest fields win.

tables/sort.py sorts all rows by uid, so that rows of one uid are consecutive; one pass in batches
then writes both tables. Memory grows to about match.merge_memory_gb and no further.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_tools.config import DatasetJob
from data_tools.tables.schema import (
    CANDIDATES,
    FATES,
    FOUND,
    MATCHED,
    QUERIES,
    DataError,
    DatasetPaths,
    read_table,
    table_writer,
)
from data_tools.tables.sort import sorted_by_uid
from data_tools.tables.stream import ROWS_PER_BATCH
from data_tools.work.progress import StageProgress

FIELDS = [name for name in CANDIDATES.names if name not in ("uid", "query_ids")]
POOL = "pool"
Row = dict[str, Any]


def run(job: DatasetJob, paths: DatasetPaths) -> dict[str, int]:
    """Write the candidates table, sorted by uid, and its fates ("found", "matched"). DataError if
    there is no candidate."""
    files = _inputs(paths)
    num_queries = read_table(paths.table("queries"), QUERIES).num_rows
    with_any: set[int] = set()
    num_rows = sum(pq.read_metadata(file).num_rows for file in files)
    num_candidates = 0
    scratch = paths.root / "tables" / ".candidates.sort"
    memory_bytes = job.match.merge_memory_gb * 1e9
    with (
        StageProgress("candidates", total=num_rows) as progress,
        table_writer(paths.fates("search"), FATES) as fates,
        table_writer(paths.table("candidates"), CANDIDATES) as table,
        sorted_by_uid(files, CANDIDATES, scratch, memory_bytes, merged) as sorted_rows,
    ):
        for rows in _in_row_groups(merged(sorted_rows)):
            table.write_table(rows, ROWS_PER_BATCH)
            fates.write_table(_fates(rows))
            with_any.update(pc.unique(pc.list_flatten(rows["query_ids"])).to_pylist())
            num_candidates += rows.num_rows
            progress.update(num_candidates)
        if num_candidates == 0:
            asked = "pool" if job.sources.pool.enabled else "search server"
            raise DataError(
                f"no candidate was found: the {asked} has nothing for any query; use more common "
                "words, or add a source (source=[commons,pool])"
            )
        progress.update(num_rows)  # rows that repeat a pair are done too
    return {
        "rows": num_rows,
        "repeated": num_rows - num_candidates,
        "queries_without_candidates": num_queries - len(with_any),
        "candidates": num_candidates,
    }


def _inputs(paths: DatasetPaths) -> list[Path]:
    searched = paths.table("searched")
    if not searched.exists():
        raise DataError(
            f"{searched} does not exist: run python -m data_tools.build --stage search first"
        )
    return [searched, *sorted(paths.matched.glob("*.parquet"))]


def merged(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield rows sorted by uid, given the same, with all rows of one uid merged into one."""
    last: Row | None = None  # held back: the next batch may begin with its uid
    for batch in batches:
        if batch.num_rows == 0:
            continue
        uids = batch["uid"]
        changes = pc.not_equal(uids[1:], uids[:-1]).to_numpy(zero_copy_only=False)
        starts = np.concatenate([[0], np.flatnonzero(changes) + 1])
        lengths = np.diff(starts, append=batch.num_rows)
        if last is not None and last["uid"] == uids[0].as_py():
            last = _merge([last, *batch.slice(0, lengths[0]).to_pylist()])
            starts, lengths = starts[1:], lengths[1:]
            if len(starts) == 0:
                continue
        if last is not None:
            yield _as_batch([last])
        if len(starts) > 1:
            yield _without_repeats(batch, starts[:-1], lengths[:-1])
        last = _merge(batch.slice(starts[-1]).to_pylist())
    if last is not None:
        yield _as_batch([last])


def _without_repeats(
    batch: pa.RecordBatch, starts: np.ndarray, lengths: np.ndarray
) -> pa.RecordBatch:
    repeated = lengths > 1
    singles = batch.take(pa.array(starts[~repeated]))
    if not repeated.any():
        return singles
    rows = [
        _merge(batch.slice(start, length).to_pylist())
        for start, length in zip(starts[repeated].tolist(), lengths[repeated].tolist())
    ]
    both = pa.Table.from_batches([singles, _as_batch(rows)])
    order = np.argsort(np.concatenate([np.flatnonzero(~repeated), np.flatnonzero(repeated)]))
    return both.take(pa.array(order)).combine_chunks().to_batches()[0]


def _merge(rows: list[Row]) -> Row:
    """Merge rows of one uid: the fields of the first by _rank, the query ids of all."""
    if len(rows) == 1:
        return rows[0]
    ids = sorted({query for row in rows for query in row["query_ids"]})
    ranked = sorted((_rank(row), place) for place, row in enumerate(rows))
    return {**rows[ranked[0][1]], "query_ids": ids}


def _rank(row: Row) -> tuple[object, ...]:
    # unknown values rank last
    fields = [(row[name] is None, row[name] if row[name] is not None else 0) for name in FIELDS]
    return (row["source"] == POOL, *fields)


def _as_batch(rows: list[Row]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, CANDIDATES)


def _fates(rows: pa.Table) -> pa.Table:
    status = pc.if_else(pc.equal(rows["source"], POOL), MATCHED, FOUND)
    nulls = [pa.nulls(rows.num_rows, field.type) for field in list(FATES)[2:]]
    return pa.Table.from_arrays([rows["uid"], status, *nulls], schema=FATES)


def _in_row_groups(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Join small batches into tables of at least ROWS_PER_BATCH rows: each becomes a row group."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(some.num_rows for some in waiting) >= ROWS_PER_BATCH:
            yield pa.Table.from_batches(waiting)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting)
