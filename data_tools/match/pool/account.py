"""What was read of a file: its rows, what became of them, and where the first bad one is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.config import PoolConfig
from data_tools.match.pool.clean import RowCounts
from data_tools.match.pool.columns import Batch, choose_columns, convert, is_list
from data_tools.match.pool.csv_rows import DELIMITERS, column_names, numbered_rows, quoted
from data_tools.match.pool.files import PoolFile, open_file, open_text
from data_tools.match.pool.json_rows import faults
from data_tools.tables.schema import DataError

WHAT_TO_DO = (
    "repair them (text as UTF-8, one cell per column, captions as text), or leave the file out of "
    "sources.pool.paths"
)


# What the footers of earlier versions lack
ADDED = ("largest_cell", "in_quotes", "first_bad")


@dataclass
class Account:
    """The rows of a file, or of a part of it."""

    counts: RowCounts = field(default_factory=RowCounts)
    largest_cell: int = 0
    """Bytes of the longest URL or caption."""
    in_quotes: int = 0
    """Captions that begin and end with a double quote in a file whose quotes are read as text."""
    first_bad: str = ""
    """Where and what the first unreadable row is; "" if there is none."""

    def note(self, batch: Batch) -> None:
        """Count what is not among the columns of a batch; `usable` counts those."""
        self.counts.rows += batch.num_broken - batch.num_more_captions
        self.counts.more_captions += batch.num_more_captions
        self.counts.unreadable += batch.num_broken
        self.in_quotes += batch.num_in_quotes

    def add(self, other: Account) -> None:
        """Add another part of the file; `other` lies behind."""
        self.counts.add(other.counts)
        self.largest_cell = max(self.largest_cell, other.largest_cell)
        self.in_quotes += other.in_quotes
        self.first_bad = self.first_bad or other.first_bad

    def as_json(self) -> dict[str, Any]:
        """For the footer of a unit's table. The counts stand at the top, as they did when they were
        all that was kept."""
        return {
            **asdict(self.counts),
            "largest_cell": self.largest_cell,
            "in_quotes": self.in_quotes,
            "first_bad": self.first_bad,
        }

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Account:
        """The account that `as_json` gave; what an earlier version did not keep is 0 or empty."""
        known = {name: stored[name] for name in vars(RowCounts()) if name in stored}
        more = {name: stored[name] for name in ADDED if name in stored}
        return cls(RowCounts(**known), **more)

    def line(self, name: str) -> str:
        """One line for the user."""
        counts = self.counts
        rows = counts.rows or 1
        parts = [f"{counts.rows:,} rows in the file, {counts.rows - counts.unreadable:,} read"]
        if counts.unreadable:
            share = f"{100 * counts.unreadable / rows:.2g} %"
            first = f", the first: {self.first_bad}" if self.first_bad else ""
            parts.append(f"{counts.unreadable:,} unreadable ({share}{first})")
        if self.in_quotes:
            parts.append(
                f"{self.in_quotes:,} captions stand in quotes, which are kept as text "
                "(sources.pool.quoted=true takes them off)"
            )
        if counts.more_captions:
            parts.append(f"{counts.more_captions:,} more captions in lists")
        if counts.null:
            parts.append(f"{counts.null:,} without URL or caption")
        if counts.not_http:
            hint = " (is it sources.pool.url_column?)" if counts.not_http * 2 > rows else ""
            parts.append(f"{counts.not_http:,} without http(s){hint}")
        if counts.too_long:
            parts.append(f"{counts.too_long:,} longer than match.max_caption_chars")
        if counts.unusable_urls:
            parts.append(f"{counts.unusable_urls:,} whose URL is no address")
        if self.largest_cell:
            parts.append(f"largest cell {self.largest_cell:,} bytes")
        return f"pool {name}: " + ", ".join(parts)


def check_loss(file: PoolFile, account: Account) -> None:
    """Raise a DataError if more than half of the rows are unreadable: that is not a few bad rows,
    but a file that is read in the wrong way."""
    counts = account.counts
    if counts.unreadable * 2 > counts.rows:
        first = f"; the first: {account.first_bad}" if account.first_bad else ""
        raise DataError(
            f"{file.name}: {counts.unreadable:,} of its {counts.rows:,} rows are unreadable"
            f"{first}: {WHAT_TO_DO}"
        )


def first_unreadable(file: PoolFile, config: PoolConfig, part: int = 0, num_parts: int = 1) -> str:
    """Where the first unreadable row is and what is wrong with it. The file is read again up to
    there; this costs time only where there is such a row."""
    if file.kind == ".parquet":
        places = _parquet_faults(file, config, part, num_parts)
    elif file.kind in DELIMITERS:
        places = _csv_faults(file, config)
    else:
        places = _json_faults(file, config)
    return next(places, "")


def _csv_faults(file: PoolFile, config: PoolConfig) -> Iterator[str]:
    names = column_names(file, config)
    header = "sources.pool.column_names" if config.column_names else "the header"
    seen_quotes = False
    for row in numbered_rows(file, config, names):
        seen_quotes |= b'"' in row.content
        if row.num_cells != len(names):
            unread = seen_quotes and not quoted(file, config)
            hint = " (if cells stand in quotes: sources.pool.quoted=true)" if unread else ""
            yield f"line {row.line:,} has {row.num_cells} cells, {header} {len(names)}{hint}"
        try:
            row.content.decode()
        except UnicodeDecodeError as error:
            bad = row.content[error.start : error.start + 12]
            yield f"line {row.line:,} is not UTF-8 ({bad!r})"


def _json_faults(file: PoolFile, config: PoolConfig) -> Iterator[str]:
    with open_text(file, config) as stream:
        yield from faults(file, stream, config)


def _parquet_faults(file: PoolFile, config: PoolConfig, part: int, num_parts: int) -> Iterator[str]:
    number = 0
    with open_file(file, config) as raw, pq.ParquetFile(raw, pre_buffer=False) as table:
        chosen, _ = choose_columns(config, table.schema_arrow.names)
        chosen = {role: chosen[role] for role in ("url", "caption")}
        for group in range(table.num_row_groups):
            if group * num_parts // table.num_row_groups != part:
                number += table.metadata.row_group(group).num_rows
                continue
            names = list(dict.fromkeys(chosen.values()))
            for batch in table.iter_batches(4096, [group], columns=names, use_threads=False):
                for role, name in chosen.items():
                    for place in _not_utf8(convert_cells(config, role, batch[name])):
                        yield f"row {number + place + 1:,}: its {role} is not UTF-8"
                number += batch.num_rows


def convert_cells(config: PoolConfig, role: str, values: pa.Array) -> list[bytes | None]:
    """The cells as bytes; of a list, its texts in one."""
    if not is_list(values.type):
        return convert(config, role, values).to_pylist()
    texts = convert(config, role, values.flatten())
    ends = values.value_lengths().fill_null(0).to_numpy().cumsum()
    cells = texts.to_pylist()
    starts = [0, *ends[:-1]]
    return [b"".join(text or b"" for text in cells[a:b]) for a, b in zip(starts, ends)]


def _not_utf8(cells: list[bytes | None]) -> Iterator[int]:
    for place, cell in enumerate(cells):
        try:
            (cell or b"").decode()
        except UnicodeDecodeError:
            yield place
