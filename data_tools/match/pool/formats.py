"""Reads the rows of one file as Arrow batches, whatever its format; broken rows are only
counted."""

from __future__ import annotations

import gzip
import io
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from data_tools.config import PoolConfig
from data_tools.match.pool.columns import choose_columns, convert, is_text
from data_tools.match.pool.files import FORMATS, PoolFile, open_file
from data_tools.match.pool.json_rows import batch_of, line_rows, list_rows
from data_tools.tables.schema import DataError

BATCH_ROWS = 16_384
JSON_BATCH_ROWS = 4096
ROWS_FOR_SCHEMA = 100
# Size of a batch of parquet rows: if captions are long, a batch has fewer rows than BATCH_ROWS.
BATCH_BYTES = 32 << 20
# pyarrow's default of 1 MB fails on a row that is longer; captions of 1 MB are in real pools
CSV_BLOCK_BYTES = 16 << 20
READ_BUFFER_BYTES = 1 << 20
DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass
class Batch:
    """Columns by role (columns.py), and the number of broken rows that are not among them."""

    columns: dict[str, pa.Array]
    num_broken: int = 0


def problems_of(file: PoolFile, config: PoolConfig) -> list[str]:
    """Messages that say why the file cannot be read: unknown format, unreadable, missing columns;
    empty if it can."""
    if not file.kind:
        return [
            f"{file.name}: unknown format; {', '.join(FORMATS)} are read, and .gz of the last 4"
        ]
    try:
        present = _schema(file, config)
    except Exception as error:  # whatever the file system behind the address raises
        return [f"{file.name} is not readable as {file.kind}: {error}"]
    if present is None:  # no rows, no columns
        return []
    chosen, missing = choose_columns(config, present.names)
    if missing:
        lacks = f"{file.name} has no column for {', '.join(missing)}"
        has = ", ".join(present.names)
        return [
            f"{lacks}; it has {has}: set these to its names, take a layout (pool=laion), "
            "or name the columns of a file without header (sources.pool.column_names)"
        ]
    return [
        f"{file.name}: the column {name} ({role}) holds {kind}, not text"
        for role, name in chosen.items()
        if role in ("url", "caption") and not is_text(kind := present.field(name).type)
    ]


def read_batches(
    file: PoolFile, config: PoolConfig, part: int = 0, num_parts: int = 1
) -> Iterator[Batch]:
    """Yield part `part` of the file's rows, in their order. Only parquet files have several
    parts."""
    # the header is read before the file is opened for its rows, because some file systems give the
    # same stream to all who open a file
    header = _schema(file, config) if file.kind in DELIMITERS else None
    with open_file(file, config) as raw:
        if file.kind == ".parquet":
            yield from _parquet_batches(raw, config, part, num_parts)
        elif file.kind in DELIMITERS:
            chosen, _ = choose_columns(config, header.names if header else [])
            yield from _csv_batches(file, raw, config, chosen)
        else:
            yield from _json_batches(file, raw, config)


def _schema(file: PoolFile, config: PoolConfig) -> pa.Schema | None:
    """Names and types of the columns; for json the keys of the first rows. None: the file has no
    rows."""
    with open_file(file, config) as raw:
        if file.kind == ".parquet":
            return pq.read_schema(raw)
        if file.kind in DELIMITERS:
            names = _open_csv(file, raw, config, None, lambda row: "skip").schema.names
        else:
            rows = itertools.islice(_json_rows(file, raw, config), ROWS_FOR_SCHEMA)
            names = list(dict.fromkeys(name for row in rows if row for name in row))
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
                yield _converted(config, {role: batch[name] for role, name in chosen.items()})


def _csv_batches(
    file: PoolFile, raw: IO[bytes], config: PoolConfig, chosen: dict[str, str]
) -> Iterator[Batch]:
    num_broken = 0

    def skip(row: pyarrow.csv.InvalidRow) -> str:
        nonlocal num_broken
        num_broken += 1
        return "skip"

    reader = _open_csv(file, raw, config, sorted(set(chosen.values())), skip)
    for block in reader:
        for start in range(0, block.num_rows, BATCH_ROWS):
            piece = block.slice(start, BATCH_ROWS)
            yield _converted(config, {role: piece[name] for role, name in chosen.items()})
    yield Batch({}, num_broken)


def _open_csv(
    file: PoolFile,
    raw: IO[bytes],
    config: PoolConfig,
    columns: list[str] | None,
    on_invalid_row: Callable[[pyarrow.csv.InvalidRow], str],
) -> pyarrow.csv.CSVStreamingReader:
    """Open a csv or tsv file. Columns are read as bytes, so that a caption that is not UTF-8 costs
    only its row."""
    try:
        return pyarrow.csv.open_csv(
            pa.input_stream(raw, compression="gzip" if file.is_gzip else None),
            read_options=pyarrow.csv.ReadOptions(
                block_size=CSV_BLOCK_BYTES,
                use_threads=False,
                column_names=config.column_names or None,
            ),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=DELIMITERS[file.kind],
                quote_char='"' if config.quoted else False,
                newlines_in_values=config.quoted,
                invalid_row_handler=on_invalid_row,
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=columns or [],
                column_types={name: pa.binary() for name in columns or []},
                check_utf8=False,
            ),
        )
    except pa.ArrowInvalid as error:
        raise DataError(f"{error}; sources.pool.quoted=false if quotes are text in it") from error


def _json_rows(
    file: PoolFile, raw: IO[bytes], config: PoolConfig
) -> Iterator[dict[str, Any] | None]:
    """Yield the rows; None for what is no row."""
    # BufferedReader, because readline of fsspec has no limit of bytes
    stream: Any = gzip.GzipFile(fileobj=raw) if file.is_gzip else io.BufferedReader(raw)
    if file.kind == ".jsonl":
        return line_rows(stream)
    return list_rows(stream, config.records_field or "")


def _json_batches(file: PoolFile, raw: IO[bytes], config: PoolConfig) -> Iterator[Batch]:
    rows = _json_rows(file, raw, config)
    while some := list(itertools.islice(rows, JSON_BATCH_ROWS)):
        columns, num_broken = batch_of([row for row in some if row is not None], config)
        yield Batch(columns, num_broken + some.count(None))


def _converted(config: PoolConfig, columns: dict[str, pa.Array]) -> Batch:
    return Batch({role: convert(config, role, values) for role, values in columns.items()})
