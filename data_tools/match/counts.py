"""How many distinct pairs of the pools match each query."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_tools.tables.schema import CANDIDATES, DatasetPaths
from data_tools.tables.sort import sorted_by_uid

MEMORY_BYTES = 1e9
COLUMNS = pa.schema([CANDIDATES.field("uid"), CANDIDATES.field("query_ids")])


def counts_per_query(paths: DatasetPaths, num_queries: int) -> np.ndarray:
    """int64 (num_queries,): the distinct (url, caption) pairs in `paths.matched` that match each
    query; all 0 before the match stage. Memory does not grow with the number of pairs. Raises
    DataError for a damaged table."""
    counts = np.zeros(num_queries, np.int64)
    files = sorted(paths.matched.glob("*.parquet"))
    if not files:
        return counts
    scratch = paths.root / "tables" / f".counts-{os.getpid()}.sort"
    with sorted_by_uid(files, COLUMNS, scratch, MEMORY_BYTES, _distinct) as batches:
        for batch in _distinct(batches):
            query_ids = pc.list_flatten(batch["query_ids"]).to_numpy()
            counts += np.bincount(query_ids, minlength=num_queries)
    return counts


def _distinct(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield the first row of each uid. The other rows of a uid have the same caption, and so the
    same queries."""
    last = None
    for batch in batches:
        if batch.num_rows == 0:
            continue
        uids = batch["uid"]
        first = np.ones(batch.num_rows, bool)
        first[1:] = pc.not_equal(uids[1:], uids[:-1]).to_numpy(zero_copy_only=False)
        first[0] = uids[0].as_py() != last
        last = uids[-1].as_py()
        yield batch.filter(pa.array(first))
