"""A stage's scratch: a DuckDB file that spills to disk, so that memory does not grow with the
number of rows; and how a path gets into SQL."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa

from data_tools.tables.schema import table_writer

MEMORY_LIMIT = "2GB"
"""What DuckDB may hold before it sorts and joins on disk."""
ROWS_PER_BATCH = 65536


@contextmanager
def scratch_database(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a database in `folder`, which is made, and removed with all that was written there; so
    is what a killed run left in its place."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with duckdb.connect(str(folder / "work.duckdb")) as database:
            database.execute(f"SET memory_limit = '{MEMORY_LIMIT}'")
            database.execute("SET temp_directory = $at", {"at": str(folder / "spill")})
            database.execute("SET preserve_insertion_order = false")
            database.execute("SET enable_progress_bar = false")
            yield database
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def files_pattern(path: Path, glob: str = "") -> str:
    """`path` as DuckDB's file functions match it, and `path/glob` where `glob` is given.

    They read `[`, `*` and `?` in a folder's name as wildcards, in parameters too: a folder
    `data[1]` would be another one, or none.
    """
    literal = "".join(f"[{letter}]" if letter in "[*?" else letter for letter in str(path))
    return f"{literal}/{glob}" if glob else literal


def sql_text(text: str) -> str:
    """A quoted SQL literal, for statements such as CREATE VIEW that take no parameters."""
    return "'" + text.replace("'", "''") + "'"


def write_query(
    database: duckdb.DuckDBPyConnection, query: str, path: Path, schema: pa.Schema
) -> int:
    """The rows of an ordered query as a parquet file of exactly `schema`, whole or not there;
    returns their number."""
    num_rows = 0
    with table_writer(path, schema) as writer:
        for batch in database.sql(query).to_arrow_reader(ROWS_PER_BATCH):
            writer.write_table(pa.Table.from_batches([batch]).select(schema.names).cast(schema))
            num_rows += batch.num_rows
    return num_rows
