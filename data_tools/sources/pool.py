"""Tables of (url, caption) at hand: parquet, csv, tsv, jsonl (the last three also .gz)."""

from __future__ import annotations

import glob
import gzip
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from io import BufferedIOBase
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from data_tools.config import PoolConfig
from data_tools.schema import DataError
from data_tools.sources.base import Candidate

BATCH_ROWS = 10_000
# pyarrow's default of 1 MB fails on a row that is longer; captions of 1 MB are in real pools
CSV_BLOCK_BYTES = 16 << 20
DELIMITERS = {".csv": ",", ".tsv": "\t"}
FORMATS = ".parquet, .csv, .tsv, .jsonl, and .gz of the last three"


class Pool:
    """The rows of all files, in batches; rows that cannot be used are counted, not given.

    Raises DataError for patterns without files, unknown formats and missing columns, all at once
    and before anything is read.
    """

    def __init__(self, config: PoolConfig) -> None:
        self.config = config
        self.num_rows = self.num_null = self.num_not_http = self.num_bad = 0
        self.files, problems = _expand(config.paths)
        for file in self.files:
            problems += _problems(file, (config.url_column, config.caption_column))
        if problems:
            raise DataError("the pool cannot be read:\n  " + "\n  ".join(problems))

    def batches(self) -> Iterator[list[Candidate]]:
        """At most BATCH_ROWS candidates at a time, in the order of files and rows."""
        columns = (self.config.url_column, self.config.caption_column)
        for file in self.files:
            rows = self._rows(file, columns)
            while batch := list(itertools.islice(rows, BATCH_ROWS)):
                usable = [self._candidate(url, caption) for url, caption in batch]
                yield [candidate for candidate in usable if candidate is not None]

    def counts(self) -> dict[str, int]:
        return {
            "pool_rows": self.num_rows,
            "pool_null": self.num_null,
            "pool_not_http": self.num_not_http,
            "pool_unreadable": self.num_bad,
        }

    def _candidate(self, url: object, caption: object) -> Candidate | None:
        """None for a row that is counted as unusable instead."""
        self.num_rows += 1
        if url is None or caption is None or url == "" or caption == "":
            self.num_null += 1
            return None
        if not isinstance(url, str) or not isinstance(caption, str):
            self.num_bad += 1
            return None
        if not url.strip().lower().startswith(("http://", "https://")):
            self.num_not_http += 1
            return None
        return Candidate(
            url=url.strip(), caption=" ".join(caption.split()), license=self.config.license
        )

    def _rows(self, file: Path, columns: tuple[str, str]) -> Iterator[tuple[object, object]]:
        kind = _kind(file)
        try:
            if kind == ".parquet":
                yield from _parquet_rows(file, columns)
            elif kind == ".jsonl":
                yield from _jsonl_rows(file, columns)
            else:
                yield from self._csv_rows(file, columns)
        except (pa.ArrowException, OSError, EOFError) as error:
            raise DataError(f"{file} cannot be read to its end: {error}") from error

    def _csv_rows(self, file: Path, columns: tuple[str, str]) -> Iterator[tuple[object, object]]:
        reader = _open_csv(file, columns, self._skip_row)
        for batch in reader:
            yield from zip(*(map(_decoded, batch[name].to_pylist()) for name in columns))

    def _skip_row(self, row: pyarrow.csv.InvalidRow) -> str:
        self.num_rows += 1
        self.num_bad += 1
        return "skip"


def _expand(patterns: Iterable[str]) -> tuple[list[Path], list[str]]:
    files: dict[Path, None] = {}
    problems = []
    for pattern in patterns:
        found = sorted(path for path in map(Path, glob.glob(pattern, recursive=True)))
        found = [path for path in found if path.is_file()]
        if not found:
            problems.append(f"sources.pool.paths: {pattern!r} matches no file")
        files.update(dict.fromkeys(found))
    return list(files), problems


def _kind(file: Path) -> str:
    return Path(file.stem).suffix if file.suffix == ".gz" else file.suffix


def _problems(file: Path, columns: tuple[str, str]) -> list[str]:
    try:
        present = _columns(file)
    except (pa.ArrowException, OSError, EOFError, ValueError) as error:
        return [f"{file} is not readable as {_kind(file) or 'a table'}: {error}"]
    if present is None:
        return [f"{file}: unknown format; {FORMATS} are read"]
    missing = [column for column in columns if column not in present]
    if missing:
        told = f"{file} has no column {', '.join(missing)}; it has {', '.join(present)}"
        return [f"{told}: set sources.pool.url_column and caption_column"]
    return []


def _columns(file: Path) -> list[str] | None:
    """The names of the columns; of jsonl, the keys of the first row. None: no known format."""
    kind = _kind(file)
    if kind == ".parquet" and file.suffix != ".gz":
        return pq.read_schema(file).names
    if kind in DELIMITERS:
        return _open_csv(file, None, lambda row: "skip").schema.names
    if kind == ".jsonl":
        with _open(file) as lines:
            first = json.loads(next(iter(lines), b"{}"))
        return list(first) if isinstance(first, dict) else []
    return None


def _parquet_rows(file: Path, columns: tuple[str, str]) -> Iterator[tuple[object, object]]:
    with pq.ParquetFile(file) as table:
        for batch in table.iter_batches(BATCH_ROWS, columns=list(columns)):
            yield from zip(*(batch[name].to_pylist() for name in columns))


def _jsonl_rows(file: Path, columns: tuple[str, str]) -> Iterator[tuple[object, object]]:
    with _open(file) as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if isinstance(row, dict):
                yield row.get(columns[0]), row.get(columns[1])
            else:
                yield line, line  # bytes, no text: counted as unreadable


def _open(file: Path) -> BufferedIOBase:
    return gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb")


def _open_csv(
    file: Path,
    columns: tuple[str, str] | None,
    on_invalid_row: Callable[[pyarrow.csv.InvalidRow], str],
) -> pyarrow.csv.CSVStreamingReader:
    """Columns come as bytes: one caption that is not UTF-8 must not spoil the file."""
    compression = "gzip" if file.suffix == ".gz" else None
    kept = list(columns) if columns else []
    return pyarrow.csv.open_csv(
        pa.input_stream(str(file), compression=compression),
        read_options=pyarrow.csv.ReadOptions(block_size=CSV_BLOCK_BYTES),
        parse_options=pyarrow.csv.ParseOptions(
            delimiter=DELIMITERS[_kind(file)],
            newlines_in_values=True,
            invalid_row_handler=on_invalid_row,
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=kept, column_types={name: pa.binary() for name in kept}
        ),
    )


def _decoded(value: bytes | None) -> object:
    """Text, or the bytes themselves where they are no UTF-8."""
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return value
