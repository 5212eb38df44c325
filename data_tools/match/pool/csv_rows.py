"""Rows of csv and tsv files, by pyarrow; and the search for quotes that swallow lines."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

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
    """The columns in their order, from the header or the settings; empty for an empty file."""
    return _header(file, config)[0]


def _header(file: PoolFile, config: PoolConfig) -> tuple[list[str], bool]:
    """(the columns, whether there are rows)."""
    with open_text(file, config) as stream:
        rows = text_rows(stream, Layout(DELIMITERS[file.kind].encode(), quoted(file, config)))
        first = next(rows, None)
        if first is None:
            return [], False
        if config.column_names:
            return config.column_names, True
        return _names(file, config, first), next(rows, None) is not None


def _names(file: PoolFile, config: PoolConfig, header: TextRow) -> list[str]:
    try:
        text = header.content.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        bad = header.content[error.start : error.start + 12]
        raise FileError(f"its header is not UTF-8 ({bad!r}): save the file as UTF-8") from None
    delimiter = DELIMITERS[file.kind]
    if not quoted(file, config):
        return text.split(delimiter)
    return next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [""])


def csv_batches(file: PoolFile, config: PoolConfig) -> Iterator[Batch]:
    """Yield the rows of a file. FileError names the line where a quote swallows others."""
    # the header is read before the file is opened for its rows, because some file systems give the
    # same stream to all who open a file
    names, has_rows = _header(file, config)
    if not has_rows:
        return
    chosen, _ = choose_columns(config, names)
    read = sorted(set(chosen.values()))
    watch = _Watch(file, config, names)
    doubtful = config.quoted is None and not quoted(file, config)
    try:
        with open_text(file, config) as stream, _quiet_handler():
            for block in watch.blocks(stream, read, also_lines=len(read) < len(names)):
                yield from _batches(block, chosen, config)
                if doubtful:
                    yield Batch({}, num_in_quotes=_num_in_quotes(block[chosen["caption"]]))
    except pa.ArrowInvalid:
        watch.look()  # an open quote is what pyarrow's "straddling object" mostly means
        if watch.is_past_help():
            raise
        # pyarrow cannot pass on a broken row that is not UTF-8 (arrow 26: UnicodeDecodeError in its
        # handler): read again without such rows, from where it was
        with open_text(file, config) as stream:
            for block in watch.blocks_again(stream, read):
                yield from _batches(block, chosen, config)
    yield Batch({}, watch.num_broken)


@contextmanager
def _quiet_handler() -> Iterator[None]:
    """Without the traceback that pyarrow prints when it cannot pass a row to its handler."""
    before = sys.unraisablehook

    def hook(event: Any) -> None:
        if not isinstance(event.exc_value, UnicodeDecodeError):
            before(event)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _batches(block: pa.RecordBatch, chosen: dict[str, str], config: PoolConfig) -> Iterator[Batch]:
    for start in range(0, block.num_rows, BATCH_ROWS):
        piece = block.slice(start, BATCH_ROWS)
        yield converted(config, {role: piece[name] for role, name in chosen.items()})


def quoted(file: PoolFile, config: PoolConfig) -> bool:
    """Whether double quotes begin and end cells in this file: where the setting is null, they do
    in csv, and are text in tsv, which is mostly written without them."""
    return file.kind == ".csv" if config.quoted is None else config.quoted


def _num_in_quotes(cells: pa.Array) -> int:
    both = pc.and_(pc.starts_with(cells, '"'), pc.ends_with(cells, '"'))
    return pc.sum(both).as_py() or 0


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


class _Watch:
    """Reads a file's blocks, counts broken rows, and watches for cells over several lines that are
    several rows. What is suspicious is looked up in the text once; nothing else costs a second
    reading."""

    def __init__(self, file: PoolFile, config: PoolConfig, names: list[str]) -> None:
        self.num_broken = 0
        self._file, self._config, self._names = file, config, names
        self._quoted = quoted(file, config)
        self._num_rows = 0
        self._num_line_ends = 0
        self._broken_over_lines = False
        self._looked = False
        delimiter = re.escape(DELIMITERS[file.kind])
        self._suspicious = re.compile(
            rf'(?:\A|[\r\n]|{delimiter})"?\s*https?://'.encode(), re.IGNORECASE
        )

    def blocks(
        self, stream: io.BufferedReader, read: list[str], also_lines: bool
    ) -> Iterator[pa.RecordBatch]:
        """Yield the blocks of rows. `also_lines`: there are columns that are not read; a quote in
        their cells shows in the number of lines only."""
        lines = _Lines(stream) if self._quoted and also_lines else None
        for block in _open_csv(self._file, lines or stream, self._config, read, self._skip):
            self._num_rows += block.num_rows
            if self._quoted:
                self._check(block)
            yield block
        num_rows = self._num_rows + self.num_broken + (0 if self._config.column_names else 1)
        uncounted = lines is not None and lines.lines > num_rows + self._num_line_ends
        if uncounted or self._broken_over_lines:
            self.look()

    def blocks_again(self, stream: io.BufferedReader, read: list[str]) -> Iterator[pa.RecordBatch]:
        """Yield the blocks behind those that `blocks` gave, without the rows that are broken and
        not UTF-8, which are counted."""
        behind, self.num_broken = self._num_rows, 0
        whole = io.BufferedReader(_Whole(self._whole_rows(stream)), BLOCK_BYTES)
        for block in _open_csv(self._file, whole, self._config, read, self._skip):
            rest = block.slice(min(behind, block.num_rows))
            behind -= block.num_rows - rest.num_rows
            yield rest

    def is_past_help(self) -> bool:
        """Whether the file has no row that is broken and not UTF-8."""
        with open_text(self._file, self._config) as stream:
            rows = text_rows(stream, layout_of(self._file, self._config, self._names))
            return not any(self._hinders(row) for row in rows)

    def look(self) -> None:
        """Raise a FileError with the line of the first quote that swallows lines, if there is
        one."""
        if self._looked or not self._quoted:
            return
        self._looked = True
        for row in numbered_rows(self._file, self._config, self._names):
            if row.swallowing:
                raise FileError(_stray_quote(row))

    def _skip(self, row: pyarrow.csv.InvalidRow) -> str:
        self.num_broken += 1
        self._broken_over_lines |= "\n" in row.text
        return "skip"

    def _check(self, block: pa.RecordBatch) -> None:
        """Look at the cells of a block that hold line ends."""
        for column in block.columns:
            content = column.buffers()[2]
            # one search over all bytes of the column: most blocks have no line end in a cell
            if content is None or b"\n" not in content.to_pybytes():
                continue
            for cell in column.filter(pc.match_substring(column, "\n")).to_pylist():
                self._num_line_ends += cell.count(b"\n")
                # the end of a cell that never closes is the end of the file
                if cell.endswith(b"\n") or self._suspicious.search(cell):
                    self.look()

    def _hinders(self, row: TextRow) -> bool:
        return row.num_cells != len(self._names) and not _is_utf8(row.content)

    def _whole_rows(self, stream: io.BufferedReader) -> Iterator[bytes]:
        for row in text_rows(stream, layout_of(self._file, self._config, self._names)):
            if self._hinders(row):
                self.num_broken += 1
            else:
                yield row.content


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _stray_quote(row: TextRow) -> str:
    shown = row.content.partition(b"\n")[0].decode(errors="replace").strip()[:80]
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


class _Whole(io.RawIOBase):
    """A stream of the rows of an iterator."""

    def __init__(self, rows: Iterator[bytes]) -> None:
        self._rows = rows
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._ready = self._ready or next(self._rows, b"")
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size


def _open_csv(
    file: PoolFile,
    stream: IO[bytes] | _Lines,
    config: PoolConfig,
    columns: list[str],
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
            include_columns=columns,
            column_types={name: pa.binary() for name in columns},
            check_utf8=False,
        ),
    )
