"""The ledger: one row per candidate, with the decision of the last stage that made one about it.

The fates and sites of the report, and what each query found, can be counted again from it (`SELECT
status, count(*) ... GROUP BY status`), and it says by which rule or HTTP status a pair was lost.
The row of a duplicate names the pair that has its picture; that pair counts for the queries of both
(tables/united.parquet).
"""

from __future__ import annotations

import pyarrow.parquet as pq

from data_tools.ground.aside import written_aside
from data_tools.tables.schema import FOUND, LEDGER, DataError, DatasetPaths
from data_tools.tables.scratch import files_pattern, query_rows, scratch_database

# The fates of a stage override those of the stages before it.
STAGES = ("search", "balance", "crawl", "curate", "rebalance", "pack")


def write_ledger(paths: DatasetPaths) -> int:
    """Write ledger.parquet (LEDGER, sorted by uid); return its number of rows.

    Fates of stages that have not run are left out. DataError when there is no table of candidates.
    DuckDB joins and sorts on disk: memory does not grow with the number of candidates.
    """
    candidates = paths.table("candidates")
    if not candidates.exists():
        raise DataError(f"{candidates} does not exist: run the search stage first")
    files = {
        stage: files_pattern(paths.fates(stage)) for stage in STAGES if paths.fates(stage).exists()
    }
    words = " UNION ALL ".join(
        f"SELECT uid, status, http_status, detail, {rank} AS rank FROM read_parquet(${stage})"
        for rank, stage in enumerate(files)
    )
    # The HTTP status comes from the crawl, and is kept when a later stage decided.
    query = f"""
        SELECT c.uid, c.url, c.caption, c.source, c.query_ids,
               coalesce(f.last.status, '{FOUND}') AS status, f.http_status, f.last.detail AS detail
        FROM read_parquet($candidates) c LEFT JOIN (
            SELECT uid, max(http_status) AS http_status,
                   arg_max({{'status': status, 'detail': detail}}, rank) AS last
            FROM ({words or "SELECT NULL uid, NULL status, NULL http_status, NULL detail, 0 rank"})
            GROUP BY uid
        ) f ON c.uid = f.uid
        ORDER BY c.uid
    """
    num_rows = 0
    with (
        written_aside(paths.ledger) as aside,
        scratch_database(paths.root / "tables" / ".ledger.tmp") as database,
        pq.ParquetWriter(aside, LEDGER) as writer,
    ):
        for rows in query_rows(
            database, query, LEDGER, {**files, "candidates": files_pattern(candidates)}
        ):
            writer.write_table(rows)
            num_rows += rows.num_rows
    return num_rows
