"""The user's own queries: a text file with one per line, or a column of a csv, tsv or parquet
table."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data_tools.config import QueriesConfig
from data_tools.queries.files import expand, is_table, table_rows
from data_tools.tables.schema import DataError
from data_tools.text.fold import fold, has_word

SHOWN = 10


@dataclass
class UserList:
    """What was read from the user's files."""

    queries: list[tuple[str, str]] = field(default_factory=list)
    """(query, "FILE:LINE"), without duplicates."""
    num_lines: int = 0
    """All lines, also blank ones and comments."""
    num_duplicates: int = 0


def read_user_list(config: QueriesConfig) -> UserList:
    """Read the files of `queries.path`; duplicates within them are reported on stderr.

    Raises one DataError that lists every bad line: not UTF-8, or without a letter or digit.
    """
    user = UserList()
    first_place: dict[str, str] = {}
    duplicates, problems = [], []
    files = [Path(config.path)] if Path(config.path).exists() else expand([config.path])
    for path in files:
        named = f"{path.name} " if len(files) > 1 else ""
        for place, number, query in _rows(path, config.column):
            user.num_lines += 1
            place = f"{named}{place} {number}"
            if isinstance(query, bytes):
                problems.append(f"{place} is not UTF-8 ({query[:40]!r}): save the file as UTF-8")
            elif not query:
                continue
            elif not has_word(folded := fold(query)):
                problems.append(f"{place}: {query!r} has no letter or digit; remove it")
            elif folded in first_place:
                duplicates.append(f"{place}: {query!r} repeats {first_place[folded]}")
            else:
                first_place[folded] = place
                user.queries.append((query, f"{path.name}:{number}"))
    if problems:
        raise DataError(f"{config.path} cannot be used as a query list:\n  {_shown(problems)}")
    if not user.queries:
        raise DataError(
            f"{config.path} holds no query: write one per line (blank and # lines do not count)"
        )
    if duplicates:
        counted = f"{len(duplicates)} duplicate(s) in {config.path}, left out:"
        print(f"{counted}\n  {_shown(duplicates)}", file=sys.stderr)
    user.num_duplicates = len(duplicates)
    return user


def _rows(path: Path, column: str) -> Iterator[tuple[str, int, str | bytes]]:
    """Yield ("line" or "row", number from 1, query). The query is "" for a line to be skipped, and
    bytes for one that is not UTF-8."""
    if is_table(path):
        for number, (cell,) in enumerate(table_rows(path, [column], "queries.column"), start=1):
            yield "row", number, " ".join(cell.split())
        return
    for number, line in enumerate(_read_lines(path), start=1):
        try:
            query = " ".join(line.decode().split())
        except UnicodeDecodeError:
            yield "line", number, line
        else:
            yield "line", number, "" if query.startswith("#") else query


def _read_lines(path: Path) -> list[bytes]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"queries.path = {path}: {error.strerror}; give a text file") from error
    return content.removeprefix(b"\xef\xbb\xbf").splitlines()


def _shown(messages: list[str]) -> str:
    more = [f"(+{len(messages) - SHOWN} more)"] if len(messages) > SHOWN else []
    return "\n  ".join(messages[:SHOWN] + more)
