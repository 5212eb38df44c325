"""Where the rows of a csv or tsv text lie, and where a stray double quote swallows lines.

A cell that begins with a double quote ends at the next single one, lines further down if need be.
So a caption that merely begins with a quotation mark takes all rows up to the next mark into its
cell, and nothing is malformed for a parser. This pass over the text is in Python (about a tenth as
fast as pyarrow's), for files in which something is wrong or odd: it says in which line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

QUOTE = b'"'
URL = re.compile(rb'"?\s*https?://\S', re.IGNORECASE)
# A line without an end must not fill the memory: what is longer counts as several lines.
LONGEST_LINE_BYTES = 64 << 20


@dataclass
class TextRow:
    """One row of a table as text."""

    line: int
    """The line that it begins in, from 1."""
    last_line: int
    num_cells: int
    content: bytes
    """Its bytes, with the line end; of a row that is longer, the first LONGEST_LINE_BYTES."""
    swallowing: str = ""
    """Why a cell over several lines is no cell, but a stray quote; "" if it is one."""
    quote_line: int = 0
    """Where `swallowing` is given: the line of the stray quote."""


@dataclass(frozen=True)
class Layout:
    delimiter: bytes
    quoted: bool
    num_cells: int = 0
    """Cells of the header; 0 if unknown."""
    url_cell: int = -1
    """The place of the URL, from 0; -1: no search for whole rows within cells."""


def text_rows(stream: IO[bytes], layout: Layout) -> Iterator[TextRow]:
    """Yield the rows of a csv or tsv text as pyarrow cuts them, without blank lines."""
    reader = _Reader(layout)
    number = 0
    while line := stream.readline(LONGEST_LINE_BYTES):
        number += 1
        row = reader.add(number, line)
        if row is not None:
            yield row
    last = reader.end(number)
    if last is not None:
        yield last


class _Reader:
    """Takes line after line; a row is out when its last line is in."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._row: TextRow | None = None
        self._opened = 0  # the line of the open quote; 0: none is open
        self._first_cell = 0  # the number of the cell that the open quote began
        self._rows_inside = 0
        self._lines: list[bytes] = []  # of the row
        self._size = 0

    def add(self, number: int, line: bytes) -> TextRow | None:
        if self._row is None:
            if not line.strip(b"\r\n"):
                return None
            if not self._layout.quoted or QUOTE not in line:
                return TextRow(number, number, line.count(self._layout.delimiter) + 1, line)
            self._row = TextRow(number, number, 1, b"")
            self._lines, self._size = [], 0
        if self._size < LONGEST_LINE_BYTES:
            self._lines.append(line)
            self._size += len(line)
        self._scan(number, line)
        return self._ended(number) if not self._opened else None

    def end(self, number: int) -> TextRow | None:
        """The row that is open when the text ends."""
        if self._row is None:
            return None
        if number > self._opened:
            self._is_swallowing("it never closes")
        return self._ended(number)

    def _ended(self, number: int) -> TextRow | None:
        row, self._row, self._opened = self._row, None, 0
        if row is not None:
            row.last_line, row.content = number, b"".join(self._lines)
        return row

    def _scan(self, number: int, line: bytes) -> None:
        assert self._row is not None
        delimiter = self._layout.delimiter
        at = 0
        while True:
            if self._opened:
                closing = self._closing(line, at)
                if number > self._opened:
                    self._look_inside(line, closing)
                if closing < 0:
                    return
                at = closing + 1
                if number > self._opened:
                    self._check_closed(number, line[at : at + 1])
                self._opened = 0
            elif line.startswith(QUOTE, at):
                self._opened, self._first_cell = number, self._row.num_cells - 1
                self._rows_inside = int(self._is_tail_of_a_row(line[at:]))
                at += 1
                continue
            at = line.find(delimiter, at) + 1
            if not at:
                return
            self._row.num_cells += 1

    def _closing(self, line: bytes, at: int) -> int:
        """The place of the quote that closes a cell, -1 if it is in another line."""
        while (at := line.find(QUOTE, at)) >= 0:
            if not line.startswith(QUOTE, at + 1):  # two quotes are one that is text
                return at
            at += 2
        return -1

    def _look_inside(self, line: bytes, closing: int) -> None:
        """Count a line as a row inside the cell if it looks like one."""
        layout = self._layout
        inside = line if closing < 0 else line[:closing]
        cells = inside.rstrip(b"\r\n").split(layout.delimiter)
        whole = line.count(layout.delimiter) + 1 == layout.num_cells
        self._rows_inside += whole and _has_url(cells, layout.url_cell)

    def _is_tail_of_a_row(self, rest: bytes) -> bool:
        """Whether `rest` of the line in which a cell begins holds the cells up to the row's end."""
        cells = rest.rstrip(b"\r\n").split(self._layout.delimiter)
        place = self._layout.url_cell - self._first_cell
        whole = self._first_cell + len(cells) == self._layout.num_cells
        return whole and place > 0 and _has_url(cells, place)

    def _check_closed(self, number: int, following: bytes) -> None:
        if following not in (b"", b"\r", b"\n", self._layout.delimiter):
            self._is_swallowing(f"text follows the quote that closes it in line {number:,}")
        elif self._rows_inside:
            self._is_swallowing(
                f"up to line {number:,} it holds what looks like {self._rows_inside:,} whole row(s)"
            )

    def _is_swallowing(self, why: str) -> None:
        assert self._row is not None
        if not self._row.swallowing:
            self._row.swallowing, self._row.quote_line = why, self._opened


def _has_url(cells: list[bytes], place: int) -> bool:
    """Whether the cell at `place` is an address, and what follows it no sentence."""
    if not 0 <= place < len(cells) or not URL.match(cells[place]):
        return False
    return place + 1 == len(cells) or not cells[place + 1].startswith(b" ")
