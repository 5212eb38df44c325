"""The DuckDB database of a stage, which spills to disk so that memory does not grow with the number
of rows; and how a path gets into SQL."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa

from data_tools.tables.schema import table_writer
from data_tools.tables.stream import ROWS_PER_BATCH

MEMORY_LIMIT = "2GB"
"""Memory that DuckDB may use before it sorts and joins on disk."""
Parameters = Mapping[str, object]
"""Values of a query by name: `$name` in its text."""


@contextmanager
def scratch_database(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a database in `folder`. The folder is made by this function, and removed afterwards with
    all that was written there; so is one that a killed run left in its place.

    Rows have no order but that of an ORDER BY: DuckDB keeps none of its own here, which saves
    memory.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # DuckDB cannot open a file below a folder with "?" in its name (it looks for the file's log in
    # another folder); tables in memory spill as well, only less compactly
    file = ":memory:" if "?" in str(folder) else str(folder / "work.duckdb")
    try:
        with duckdb.connect(file) as database:
            database.execute(f"SET memory_limit = '{MEMORY_LIMIT}'")
            database.execute("SET temp_directory = $at", {"at": str(folder / "spill")})
            database.execute("SET preserve_insertion_order = false")
            database.execute("SET enable_progress_bar = false")
            yield database
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def files_pattern(path: Path, glob: str = "") -> str:
    """Return a pattern for read_parquet that matches `path` alone, or the files `path/glob`.

    DuckDB reads `[`, `*` and `?` in a path as wildcards, in parameters too: a folder `data[1]`
    without this would match `data1`, or nothing.
    """
    literal = "".join(f"[{letter}]" if letter in "[*?" else letter for letter in str(path))
    return f"{literal}/{glob}" if glob else literal


def sql_text(text: str) -> str:
    """Return a quoted SQL literal, for statements such as CREATE VIEW that take no parameters."""
    return "'" + text.replace("'", "''") + "'"


def query_rows(
    database: duckdb.DuckDBPyConnection,
    query: str,
    schema: pa.Schema,
    parameters: Parameters | None = None,
) -> Iterator[pa.Table]:
    """Yield the result of a query in tables of up to ROWS_PER_BATCH rows, of exactly `schema`. Only
    an ORDER BY in the query gives the rows an order."""
    result = database.sql(query, params=dict(parameters or {}))
    for batch in result.to_arrow_reader(ROWS_PER_BATCH):
        yield pa.Table.from_batches([batch]).select(schema.names).cast(schema)


def write_query(
    database: duckdb.DuckDBPyConnection, query: str, path: Path, schema: pa.Schema
) -> int:
    """Write the rows of an ordered query as a parquet file of exactly `schema`, which is whole or
    absent; return their number."""
    num_rows = 0
    with table_writer(path, schema) as writer:
        for rows in query_rows(database, query, schema):
            writer.write_table(rows)
            num_rows += rows.num_rows
    return num_rows
