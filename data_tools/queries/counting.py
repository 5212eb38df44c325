"""Exact counts of more keys than fit into memory.

A Counter that is full is written to a parquet file and emptied; DuckDB sums the files, and spills
to disk in its turn. Rare keys are not pruned, so counts do not depend on the order of the text. The
price is disk space below the job's folder while the stage runs: 6 bytes per word at 200,000 keys in
memory, so some 10 GB for English Wikipedia (2.4e9 words), which takes about two core-hours.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.tables.scratch import files_pattern, scratch_database, sql_text

FETCHED_ROWS = 10_000


class SpilledCounts:
    """Counts of text keys, with at most about `max_keys` of them in memory."""

    def __init__(self, folder: Path, name: str, max_keys: int) -> None:
        self._folder, self._name, self._max_keys = folder, name, max_keys
        self._held: Counter[str] = Counter()
        self._runs: list[Path] = []

    def update(self, keys: Iterable[str]) -> None:
        """Count each of `keys` once more."""
        self._held.update(keys)
        if len(self._held) > self._max_keys:
            self._spill()

    def add(self, key: str, count: int) -> None:
        """Count `key` `count` times more."""
        self._held[key] += count
        if len(self._held) > self._max_keys:
            self._spill()

    def summed(self) -> str:
        """SQL of a sub-query with the columns key and count, in which each key is one row."""
        self._spill()
        files = ", ".join(sql_text(files_pattern(path)) for path in self._runs)
        return (
            f"(SELECT key, sum(count)::BIGINT AS count FROM read_parquet([{files}]) GROUP BY key)"
        )

    def _spill(self) -> None:
        if not self._held and self._runs:
            return
        table = pa.table(
            {
                "key": pa.array(self._held.keys(), pa.string()),
                "count": pa.array(self._held.values(), pa.int64()),
            }
        )
        self._held.clear()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self._name}-{len(self._runs):05d}.parquet"
        pq.write_table(table, path, compression="zstd")
        self._runs.append(path)


def rows(
    sql: str, parameters: Sequence[object], folder: Path, memory_limit_mib: int
) -> Iterator[tuple]:
    """Yield the rows of a query over `summed()`, a few in memory at a time. DuckDB keeps to
    `memory_limit_mib` and spills below `folder`."""
    # A folder for each query: a source that reached its limit is left half read, with its database
    # open, while the next source is asked.
    with scratch_database(folder / f"duckdb-{uuid.uuid4().hex[:8]}") as database:
        database.execute(f"SET memory_limit = '{memory_limit_mib}MiB'")
        database.execute("SET threads = 2")
        result = database.execute(sql, list(parameters))
        while batch := result.fetchmany(FETCHED_ROWS):
            yield from batch
