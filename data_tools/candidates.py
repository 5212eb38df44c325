"""Stage 4: what pools and search servers gave becomes one table with a row a pair.

The same pair can come from several files, sources and queries; it is one sample, with the query ids
of all. Which of the equal pairs gives the other fields depends on their content alone, so that the
order of files and the number of processes change nothing.
"""

from __future__ import annotations

import sys

import duckdb
import pyarrow as pa

from data_tools.config import DatasetJob
from data_tools.schema import (
    CANDIDATES,
    FATES,
    FOUND,
    MATCHED,
    QUERIES,
    DataError,
    DatasetPaths,
    read_table,
    write_table,
)

FIELDS = [name for name in CANDIDATES.names if name not in ("uid", "query_ids")]


def run(job: DatasetJob, paths: DatasetPaths) -> dict[str, int]:
    """Write the candidates table, in the order of the uids, and its fates ("found", "matched").
    DataError when there is none."""
    files = [paths.table("searched"), *sorted(paths.matched.glob("*.parquet"))]
    row = ", ".join(f"'{name}': {name}" for name in FIELDS)
    with duckdb.connect() as database:
        # a searched pair tells more (licence, author) than a pool's: "pool" comes last
        merged = database.sql(
            f"""SELECT uid, unnest(first), query_ids FROM (
                SELECT uid, list_sort(list_distinct(flatten(list(query_ids)))) AS query_ids,
                       min({{'rank': source = 'pool', {row}}}) AS first
                FROM read_parquet($files) GROUP BY uid)
            ORDER BY uid""",
            params={"files": [str(file) for file in files]},
        ).to_arrow_table()
    if merged.num_rows == 0:
        asked = "pool" if job.sources.pool.enabled else "search server"
        raise DataError(
            f"no candidate was found: the {asked} has nothing for any query; use more common "
            "words, or add a source (source=[commons,pool])"
        )
    write_table(merged, paths.table("candidates"), CANDIDATES)
    status = [MATCHED if source == "pool" else FOUND for source in merged["source"].to_pylist()]
    fates = pa.table({"uid": merged["uid"], "status": status})
    for field in list(FATES)[2:]:
        fates = fates.append_column(field, pa.nulls(len(fates), field.type))
    write_table(fates, paths.fates("search"), FATES)
    with_any = {query for ids in merged["query_ids"].to_pylist() for query in ids}
    num_queries = read_table(paths.table("queries"), QUERIES).num_rows
    return {
        "queries_without_candidates": num_queries - len(with_any),
        "candidates": merged.num_rows,
    }


if __name__ == "__main__":
    from data_tools.build import main

    sys.exit(main(sys.argv[1:], stage="candidates"))
