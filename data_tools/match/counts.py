"""How many pairs of the pools each query found."""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_tools.schema import DatasetPaths

MEMORY = "1GB"


def counts_per_query(paths: DatasetPaths, num_queries: int) -> np.ndarray:
    """int64 (num_queries,): distinct (url, caption) pairs in `paths.matched` that each query found.

    Flat in memory: every row is counted as it streams by, then what repeated pairs counted too
    often is taken off; DuckDB finds those by uid, on disk when they are many.
    """
    counts = np.zeros(num_queries, np.int64)
    files = sorted(paths.matched.glob("*.parquet"))
    for file in files:
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches(columns=["query_ids"]):
                found = pc.list_flatten(batch["query_ids"]).to_numpy()
                counts += np.bincount(found, minlength=num_queries)
    if not files:
        return counts
    scratch = paths.root / "tables" / ".counts.sort"
    with duckdb.connect(
        config={"memory_limit": MEMORY, "temp_directory": str(scratch)}
    ) as database:
        # the same pair has the same caption, and with it the same queries, wherever it stands
        extra = database.sql(
            """WITH repeated AS (
                   SELECT uid, count(*) - 1 AS extra FROM read_parquet($files)
                   GROUP BY uid HAVING count(*) > 1),
               one AS (
                   SELECT uid, any_value(query_ids) AS query_ids
                   FROM read_parquet($files) SEMI JOIN repeated USING (uid) GROUP BY uid)
               SELECT query, sum(extra)::BIGINT AS extra FROM (
                   SELECT unnest(query_ids) AS query, extra FROM one JOIN repeated USING (uid))
               GROUP BY query""",
            params={"files": [str(file) for file in files]},
        ).fetchnumpy()
    np.subtract.at(counts, extra["query"].astype(np.int64), extra["extra"].astype(np.int64))
    return counts
