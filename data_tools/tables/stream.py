"""Tables of a stage in batches, for those with a row a candidate: ten million or ten billion of
them take the same memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.tables.schema import DataError

ROWS_PER_BATCH = 65536


def open_table(path: Path | str) -> pq.ParquetFile:
    """For reading batch by batch. pyarrow's default reads the whole file ahead: 500 MB for one of
    400 MB, where this takes 150 MB whatever the size."""
    return pq.ParquetFile(path, pre_buffer=False)


def table_batches(
    path: Path, schema: pa.Schema, columns: Sequence[str] = ()
) -> Iterator[pa.RecordBatch]:
    """The rows of a table, with all columns of `schema` or some of them. A missing file or column
    is a DataError that names the stage to run again."""
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
    """The parquet files below `folder` whose footers say nothing: cut off or overwritten by
    somebody, for the stages write aside."""
    found = []
    for file in sorted(folder.rglob("*.parquet")):
        try:
            pq.read_metadata(file)
        except (pa.ArrowException, OSError):
            found.append(file)
    return found
