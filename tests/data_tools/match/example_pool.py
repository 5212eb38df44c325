"""The worked example as a pool: its tables, and jobs that match it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.config import DatasetJob, PoolConfig
from data_tools.tables.schema import QUERIES, DatasetPaths, make_uid, write_table
from tests.data_tools.worked_example import CAPTIONS
from tests.data_tools.worked_example import QUERIES as NAMES

URLS = [f"https://example.org/{number}.jpg" for number in range(len(CAPTIONS))]
POOL = pa.schema([("url", pa.string()), ("caption", pa.string())])


def uid(number: int) -> str:
    """Of the candidate that caption `number` becomes: white space is one space there."""
    return make_uid(URLS[number], " ".join(CAPTIONS[number].split()))


def pool_table() -> pa.Table:
    return pa.table([URLS, CAPTIONS], schema=POOL)


def paths_with_queries(out_dir: Path, names: Sequence[str] = NAMES) -> DatasetPaths:
    paths = DatasetPaths(out_dir)
    rows = [
        {"query_id": number, "query": name, "folded": name, "origin": "by hand"}
        for number, name in enumerate(names)
    ]
    write_table(pa.Table.from_pylist(rows, QUERIES), paths.table("queries"), QUERIES)
    return paths


def job_of(paths: DatasetPaths, *patterns: object, unit_bytes: int = 10**9) -> DatasetJob:
    job = DatasetJob(out_dir=str(paths.root))
    job.sources.pool = PoolConfig(enabled=True, paths=[str(pattern) for pattern in patterns])
    job.match.unit_bytes = unit_bytes
    return job


def example_job(folder: Path, unit_bytes: int = 10**9) -> tuple[DatasetJob, DatasetPaths]:
    """The example in one parquet file of 4 row groups, about 2 kB."""
    paths = paths_with_queries(folder / "out")
    pq.write_table(pool_table(), folder / "pool.parquet", row_group_size=3)
    return job_of(paths, folder / "pool.parquet", unit_bytes=unit_bytes), paths


def matched_rows(paths: DatasetPaths) -> list[dict]:
    tables = [pq.read_table(file) for file in sorted(paths.matched.glob("*.parquet"))]
    return [row for table in tables for row in table.to_pylist()]


def states(paths: DatasetPaths) -> dict[str, int]:
    """Time of change of every file of the match stage."""
    return {file.name: file.stat().st_mtime_ns for file in paths.matched.iterdir()}
