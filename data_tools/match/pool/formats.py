"""Reads the rows of one file as Arrow batches, whatever its format; broken rows are only
counted."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.config import PoolConfig
from data_tools.match.pool.columns import (
    Batch,
    choose_columns,
    converted,
    is_text,
    may_be_caption,
    repeated,
)
from data_tools.match.pool.csv_rows import BATCH_ROWS, DELIMITERS, column_names, csv_batches
from data_tools.match.pool.files import FORMATS, FileError, PoolFile, open_file, open_text, reason
from data_tools.match.pool.json_rows import batch_of, json_rows

JSON_BATCH_ROWS = 4096
ROWS_FOR_SCHEMA = 100
# Size of a batch of parquet rows: if captions are long, a batch has fewer rows than BATCH_ROWS.
BATCH_BYTES = 32 << 20
READ_BUFFER_BYTES = 1 << 20


def problems_of(file: PoolFile, config: PoolConfig) -> list[str]:
    """Messages that say why the file cannot be read: unknown format, unreadable, missing or
    repeated columns; empty if it can."""
    if not file.kind:
        return [
            f"{file.name}: unknown format; {', '.join(FORMATS)} are read, and .gz, .zst, .bz2, .xz "
            "of the last 4"
        ]
    try:
        present = _schema(file, config)
    except FileError as error:
        return [f"{file.name} is not readable as {file.kind}: {error}"]
    except Exception as error:  # whatever the file system behind the address raises
        return [
            f"{file.name} is not readable as {file.kind}: {reason(error)}; write it again, or "
            "leave it out of sources.pool.paths"
        ]
    if present is None:  # no rows, no columns
        return []
    chosen, missing = choose_columns(config, present.names)
    if missing:
        lacks = f"{file.name} has no column for {', '.join(missing)}"
        has = ", ".join(_shown(name) for name in present.names)
        return [
            f"{lacks}; it has {has}: set these to its names, take a layout (pool=laion), "
            "or name the columns of a file without header (sources.pool.column_names)"
        ]
    twice = repeated(chosen, present.names)
    if twice:
        return [f"{file.name}: {problem}" for problem in twice]
    return [
        f"{file.name}: the column {name} ({role}) holds {kind}, not text: write it as text, or set "
        f"sources.pool.{role}_column to another one"
        for role, name in chosen.items()
        if (kind := _other_than_text(role, present.field(name).type)) is not None
    ]


def _shown(name: str) -> str:
    if not name:
        return "one without a name"
    return name if name.isprintable() else repr(name)[:60]


def _other_than_text(role: str, kind: pa.DataType) -> pa.DataType | None:
    """The type, if a column of it cannot have this role."""
    if role == "url":
        return None if is_text(kind) else kind
    return kind if role == "caption" and not may_be_caption(kind) else None


def read_batches(
    file: PoolFile, config: PoolConfig, part: int = 0, num_parts: int = 1
) -> Iterator[Batch]:
    """Yield part `part` of the file's rows, in their order. Only parquet files have several
    parts."""
    if file.kind == ".parquet":
        with open_file(file, config) as raw:
            yield from _parquet_batches(raw, config, part, num_parts)
    elif file.kind in DELIMITERS:
        yield from csv_batches(file, config)
    else:
        yield from _json_batches(file, config)


def _schema(file: PoolFile, config: PoolConfig) -> pa.Schema | None:
    """Names and types of the columns; for json the keys of the first rows. None: the file has no
    rows."""
    if file.kind == ".parquet":
        with open_file(file, config) as raw:
            return pq.read_schema(raw)
    if file.kind in DELIMITERS:
        names = column_names(file, config)
    else:
        with open_text(file, config) as stream:
            first = itertools.islice(json_rows(file, stream, config), ROWS_FOR_SCHEMA)
            names = list(dict.fromkeys(name for row in first if row for name in row))
    return pa.schema([(name, pa.string()) for name in names]) if names else None


def _parquet_batches(
    raw: IO[bytes], config: PoolConfig, part: int, num_parts: int
) -> Iterator[Batch]:
    # without pre_buffer, which holds whole row groups: they are 1 GB in some pools
    with pq.ParquetFile(raw, buffer_size=READ_BUFFER_BYTES, pre_buffer=False) as table:
        count = table.num_row_groups
        groups = [group for group in range(count) if group * num_parts // count == part]
        chosen, _ = choose_columns(config, table.schema_arrow.names)
        for group in groups:
            rows = max(table.metadata.row_group(group).num_rows, 1)
            row_bytes = max(table.metadata.row_group(group).total_byte_size // rows, 1)
            size = max(min(BATCH_ROWS, BATCH_BYTES // row_bytes), 1)
            names = list(dict.fromkeys(chosen.values()))
            for batch in table.iter_batches(size, [group], columns=names, use_threads=False):
                yield converted(config, {role: batch[name] for role, name in chosen.items()})


def _json_batches(file: PoolFile, config: PoolConfig) -> Iterator[Batch]:
    with open_text(file, config) as stream:
        rows = json_rows(file, stream, config)
        while some := list(itertools.islice(rows, JSON_BATCH_ROWS)):
            batch = batch_of([row for row in some if row is not None], config)
            batch.num_broken += some.count(None)
            yield batch
