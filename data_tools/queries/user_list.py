"""The user's own queries: a text file with one per line, or a column of a csv, tsv or parquet
table."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data_tools.config import QueriesConfig
from data_tools.queries.files import expand, is_table, opened_text, plain_name, table_rows
from data_tools.tables.schema import DataError
from data_tools.text.fold import fold, has_word

SHOWN = 10
# A query is a word or a phrase. What is longer is a list that was written without line breaks, and
# would be asked of every server.
LONGEST_QUERY_CHARS = 10_000


@dataclass
class ListFile:
    """What became of the lines or rows of one file; the other numbers add up to `num_rows`."""

    path: Path
    unit: str
    """"line" or "row"."""
    num_rows: int = 0
    num_queries: int = 0
    num_skipped: int = 0
    """Blank ones, nulls, and comments."""
    num_duplicates: int = 0
    """Equal to an earlier one when case, width and white space do not count."""
    largest: int = 0
    """Characters of the longest."""

    def line(self) -> str:
        """One line for the user."""
        return (
            f"queries {self.path}: {self.num_rows:,} {self.unit}s in the file, "
            f"{self.num_queries:,} queries read, {self.num_duplicates:,} repeat another (case and "
            f"width apart), {self.num_skipped:,} blank or comment, longest {self.largest:,} "
            "characters"
        )


@dataclass
class UserList:
    """What was read from the user's files."""

    queries: list[tuple[str, str]] = field(default_factory=list)
    """(query, "FILE:LINE"), without duplicates."""
    files: list[ListFile] = field(default_factory=list)

    @property
    def num_lines(self) -> int:
        """All lines, also blank ones and comments."""
        return sum(file.num_rows for file in self.files)

    @property
    def num_duplicates(self) -> int:
        return sum(file.num_duplicates for file in self.files)


def read_user_list(config: QueriesConfig) -> UserList:
    """Read the files of `queries.path`. Duplicates within them, and NUL bytes, which are read as
    spaces, are reported on stderr.

    Raises one DataError that lists every bad line: not UTF-8, without a letter or digit, or so long
    that it is no query.
    """
    user, notes = UserList(), _Notes()
    paths = [Path(config.path)] if Path(config.path).exists() else expand([config.path])
    for path in paths:
        file = ListFile(path, "row" if is_table(path) else "line")
        user.files.append(file)
        named = f"{path.name} " if len(paths) > 1 else ""
        for number, query in _rows(path, config.column):
            file.num_rows += 1
            if not query:
                file.num_skipped += 1
            elif taken := _taken(query, f"{named}{file.unit} {number}", file, notes):
                user.queries.append((taken, f"{path.name}:{number}"))
    if notes.problems:
        listed = _shown(notes.problems)
        raise DataError(f"{config.path} cannot be used as a query list:\n  {listed}")
    if not user.queries:
        raise DataError(
            f"{config.path} holds no query: write one per line (blank and # lines do not count)"
        )
    if notes.nuls:
        print(
            f"NUL bytes in {config.path}, read as spaces:\n  {_shown(notes.nuls)}", file=sys.stderr
        )
    if notes.duplicates:
        counted = f"{len(notes.duplicates)} duplicate(s) in {config.path}, left out:"
        print(f"{counted}\n  {_shown(notes.duplicates)}", file=sys.stderr)
    return user


@dataclass
class _Notes:
    """What is to be said of the lines, each with its place."""

    first_place: dict[str, str] = field(default_factory=dict)
    """Folded query -> where it stands first."""
    duplicates: list[str] = field(default_factory=list)
    nuls: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def _taken(query: str | bytes, place: str, file: ListFile, notes: _Notes) -> str:
    """The query as it is taken, counted in `file`; "" for a bad one or a duplicate, which `notes`
    have."""
    if isinstance(query, str) and "\0" in query:
        query = " ".join(query.replace("\0", " ").split())  # matching parts words there too
        notes.nuls.append(f"{place}: {query[:40]!r}")
    problem = _problem(query)
    if problem or isinstance(query, bytes):
        notes.problems.append(f"{place}{problem}")
        return ""
    file.largest = max(file.largest, len(query))
    folded = fold(query)
    if folded in notes.first_place:
        file.num_duplicates += 1
        notes.duplicates.append(f"{place}: {query!r} repeats {notes.first_place[folded]}")
        return ""
    file.num_queries += 1
    notes.first_place[folded] = place
    return query


def _problem(query: str | bytes) -> str:
    """What is wrong with a query, for behind its place; "" if nothing is."""
    if isinstance(query, bytes):
        return f" is not UTF-8 ({query[:40]!r}): save the file as UTF-8"
    if len(query) > LONGEST_QUERY_CHARS:
        return (
            f" has {len(query):,} characters ({query[:40]!r} ...), a query at most "
            f"{LONGEST_QUERY_CHARS:,}: write one query per line"
        )
    if "\n" in query:
        return (
            f" goes over several lines ({query[:40]!r}): a stray double quote? Write one query per "
            "row"
        )
    return "" if has_word(fold(query)) else f": {query[:80]!r} has no letter or digit; remove it"


def _rows(path: Path, column: str) -> Iterator[tuple[int, str | bytes]]:
    """Yield (number from 1, query). The query is "" for a line to be skipped, and bytes for one
    that is not UTF-8."""
    if is_table(path):
        for number, (cell,) in enumerate(table_rows(path, [column], "queries.column"), start=1):
            # in a csv, lines in a cell may be other rows, see `_problem`; in parquet a row is a row
            over_lines = path.suffix != ".parquet" and "\n" in cell.strip()
            yield number, cell if over_lines else " ".join(cell.split())
        return
    if Path(plain_name(path)).suffix in (".json", ".jsonl"):
        raise DataError(
            f"queries.path = {path}: JSON is not read as a list: write one query per line, or a "
            ".csv, .tsv or .parquet table"
        )
    for number, line in enumerate(_read_lines(path), start=1):
        try:
            query = " ".join(line.decode().split())
        except UnicodeDecodeError:
            yield number, line
        else:
            yield number, "" if query.startswith("#") else query


def _read_lines(path: Path) -> list[bytes]:
    with opened_text(path) as file:
        return file.read().splitlines()


def _shown(messages: list[str]) -> str:
    more = [f"(+{len(messages) - SHOWN} more)"] if len(messages) > SHOWN else []
    return "\n  ".join(messages[:SHOWN] + more)
