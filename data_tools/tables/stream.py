"""Reading tables in batches: ten million rows take as much memory as ten billion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.tables.schema import DataError

ROWS_PER_BATCH = 65536


def open_table(path: Path | str) -> pq.ParquetFile:
    """Open a parquet file for reading batch by batch. pyarrow's default reads the whole file ahead,
    which takes 500 MB of memory for a file of 400 MB; this takes 150 MB whatever the size."""
    return pq.ParquetFile(path, pre_buffer=False)


def table_batches(
    path: Path, schema: pa.Schema, columns: Sequence[str] = ()
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a table in batches, with all columns of `schema` or with `columns` only.
    DataError for a missing file or column."""
    if not path.exists():
        raise DataError(
            f"{path} does not exist: run the stage that writes it first (python -m "
            "data_tools.build)"
        )
    wanted = pa.schema([schema.field(name) for name in columns or schema.names])
    with open_table(path) as file:
        missing = [name for name in wanted.names if name not in file.schema_arrow.names]
        if missing:
            raise DataError(
                f"{path} lacks the column(s) {missing}, it has {file.schema_arrow.names}: delete "
                "it and run again"
            )
        for batch in file.iter_batches(ROWS_PER_BATCH, columns=wanted.names):
            yield batch.select(wanted.names).cast(wanted)


def unreadable_tables(folder: Path) -> list[Path]:
    """Return the parquet files below `folder` whose footers cannot be read. The stages leave none,
    as they write aside: somebody cut or overwrote such a file."""
    damaged = []
    for file in sorted(folder.rglob("*.parquet")):
        try:
            pq.read_metadata(file)
        except (pa.ArrowException, OSError):
            damaged.append(file)
    return damaged
