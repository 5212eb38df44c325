"""Rows of csv and tsv files, by pyarrow; and the search for quotes that swallow lines."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from data_tools.config import PoolConfig
from data_tools.match.pool.columns import Batch, choose_columns, converted
from data_tools.match.pool.files import FileError, PoolFile, open_text
from data_tools.text.quoting import Layout, TextRow, text_rows

BATCH_ROWS = 16_384
# pyarrow's default of 1 MB fails on a row that is longer; captions of 1 MB are in real pools
BLOCK_BYTES = 16 << 20
DELIMITERS = {".csv": ",", ".tsv": "\t"}


def column_names(file: PoolFile, config: PoolConfig) -> list[str]:
    """The columns in their order, from the header or the settings; empty for a file without a
    byte."""
    with open_text(file, config) as stream:
        if not stream.peek(1):
            return []
        return list(_open_csv(file, stream, config, None, lambda row: "skip").schema.names)


def csv_batches(file: PoolFile, config: PoolConfig) -> Iterator[Batch]:
    """Yield the rows of a file. FileError names the line where a quote swallows others."""
    # the header is read before the file is opened for its rows, because some file systems give the
    # same stream to all who open a file
    names = column_names(file, config)
    if not names:
        return
    chosen, _ = choose_columns(config, names)
    read = sorted(set(chosen.values()))
    quotes = _Quotes(file, config, names)
    broken = _Broken()
    with open_text(file, config) as stream:
        # cells of columns that are not read are not seen: their lines are
        counted = _Lines(stream) if quotes.matter and len(read) < len(names) else None
        try:
            for block in _open_csv(file, counted or stream, config, read, broken.skip):
                for piece in _pieces(block, quotes):
                    yield converted(config, {role: piece[name] for role, name in chosen.items()})
        except (pa.ArrowException, OSError):
            quotes.look("")  # an open quote is what pyarrow's "straddling object" mostly means
            raise
    if quotes.matter and broken.over_lines:
        quotes.look("a broken row")
    if counted is not None:
        header = 0 if config.column_names else 1
        quotes.compare(counted.lines, quotes.num_rows + broken.num_rows + header)
    yield Batch({}, broken.num_rows)


def _pieces(block: pa.RecordBatch, quotes: _Quotes) -> Iterator[pa.RecordBatch]:
    if quotes.matter:
        quotes.check(block)
    for start in range(0, block.num_rows, BATCH_ROWS):
        yield block.slice(start, BATCH_ROWS)


def quoted(file: PoolFile, config: PoolConfig) -> bool:
    """Whether double quotes begin and end cells in this file: where the setting is null, they do
    in csv, and are text in tsv, which is mostly written without them."""
    return file.kind == ".csv" if config.quoted is None else config.quoted


def layout_of(file: PoolFile, config: PoolConfig, names: list[str]) -> Layout:
    """What `text_rows` needs to know of a file with these columns."""
    chosen, _ = choose_columns(config, names)
    # `true` says that a cell may hold anything, also what looks like rows
    search = config.quoted is None and "url" in chosen
    place = names.index(chosen["url"]) if search else -1
    delimiter = DELIMITERS[file.kind].encode()
    return Layout(delimiter, quoted(file, config), len(names), place)


def numbered_rows(file: PoolFile, config: PoolConfig, names: list[str]) -> Iterator[TextRow]:
    """The rows as text, with their lines, without the header."""
    with open_text(file, config) as stream:
        rows = text_rows(stream, layout_of(file, config, names))
        if not config.column_names:
            next(rows, None)
        yield from rows


class _Broken:
    """Counts the rows that have more or fewer cells than the header."""

    def __init__(self) -> None:
        self.num_rows = 0
        self.over_lines = False

    def skip(self, row: pyarrow.csv.InvalidRow) -> str:
        self.num_rows += 1
        self.over_lines |= "\n" in row.text
        return "skip"


class _Quotes:
    """Watches for cells over several lines that are several rows. What is suspicious is looked up
    in the text once; nothing else costs a second reading."""

    def __init__(self, file: PoolFile, config: PoolConfig, names: list[str]) -> None:
        self.matter = quoted(file, config)
        self.num_rows = 0
        self._file, self._config, self._names = file, config, names
        self._num_line_ends = 0
        self._looked = False
        delimiter = re.escape(DELIMITERS[file.kind])
        self._suspicious = re.compile(
            rf'(?:\A|[\r\n]|{delimiter})"?\s*https?://'.encode(), re.IGNORECASE
        )

    def check(self, block: pa.RecordBatch) -> None:
        """Look at the cells of a block that hold line ends."""
        self.num_rows += block.num_rows
        for column in block.columns:
            content = column.buffers()[2]
            # one search over all bytes of the column: most blocks have no line end in a cell
            if content is None or b"\n" not in content.to_pybytes():
                continue
            for cell in column.filter(pc.match_substring(column, "\n")).to_pylist():
                self._num_line_ends += cell.count(b"\n")
                # the end of a cell that never closes is the end of the file
                if cell.endswith(b"\n") or self._suspicious.search(cell):
                    self.look("a cell")

    def compare(self, num_lines: int, num_explained: int) -> None:
        """Look at the text if the file has more lines than its rows take."""
        if num_lines > num_explained + self._num_line_ends:
            self.look("the number of lines")

    def look(self, _why: str) -> None:
        """Raise a FileError with the line of the first quote that swallows lines, if there is
        one."""
        if self._looked or not self.matter:
            return
        self._looked = True
        for row in numbered_rows(self._file, self._config, self._names):
            if row.swallowing:
                raise FileError(_stray_quote(row))


def _stray_quote(row: TextRow) -> str:
    shown = row.content.decode(errors="replace").strip()[:80]
    num_lines = row.last_line - row.quote_line
    holds_rows = "looks like" in row.swallowing
    keep = "; sources.pool.quoted=true if the cell is right" if holds_rows else ""
    return (
        f"line {row.quote_line:,}: a double quote begins a cell that swallows "
        f"{num_lines:,} line(s): {row.swallowing} ({shown!r}). Write the quote twice within a cell "
        "in quotes, or set sources.pool.quoted=false if quotes are text in all of the file" + keep
    )


class _Lines(io.RawIOBase):
    """Counts the lines of what is read from a stream."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._line_ends = 0
        self._last = b"\n"

    @property
    def lines(self) -> int:
        return self._line_ends + (self._last != b"\n")

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        content = self._stream.read(size)
        # faster than bytes.count where there are many
        self._line_ends += int(np.count_nonzero(np.frombuffer(content, np.uint8) == ord("\n")))
        self._last = content[-1:] or self._last
        return content


def _open_csv(
    file: PoolFile,
    stream: IO[bytes] | _Lines,
    config: PoolConfig,
    columns: list[str] | None,
    on_invalid_row: Callable[[pyarrow.csv.InvalidRow], str],
) -> pyarrow.csv.CSVStreamingReader:
    """Open a csv or tsv file. Columns are read as bytes, so that a caption that is not UTF-8 costs
    only its row."""
    in_quotes = quoted(file, config)
    return pyarrow.csv.open_csv(
        pa.input_stream(stream, compression=None),
        read_options=pyarrow.csv.ReadOptions(
            block_size=BLOCK_BYTES,
            use_threads=False,
            column_names=config.column_names or None,
        ),
        parse_options=pyarrow.csv.ParseOptions(
            delimiter=DELIMITERS[file.kind],
            quote_char='"' if in_quotes else False,
            newlines_in_values=in_quotes,
            invalid_row_handler=on_invalid_row,
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=columns or [],
            column_types={name: pa.binary() for name in columns or []},
            check_utf8=False,
        ),
    )
