"""The user's own list of queries: a text file, one query a line."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa

from data_tools.config import DatasetJob, QueriesConfig
from data_tools.manifest import file_sha256
from data_tools.progress import StageProgress
from data_tools.queries.fold import fold, has_word
from data_tools.schema import QUERIES, DataError, DatasetPaths, write_table

SHOWN = 10


def run(job: DatasetJob, paths: DatasetPaths) -> dict[str, int]:
    """Read `queries.path`, report duplicates on stderr, write the queries table.

    Raises DataError with every bad line at once: not UTF-8, or without a letter or digit.
    """
    path = Path(job.queries.path)
    lines = _read_lines(path)
    rows: list[dict[str, object]] = []
    first_line: dict[str, int] = {}
    duplicates, problems = [], []
    with StageProgress("queries", total=len(lines)) as progress:
        for number, line in enumerate(lines, start=1):
            progress.advance()
            query = _decoded(line)
            if query is None:
                problems.append(
                    f"line {number} is not UTF-8 ({line[:40]!r}): save the file as UTF-8"
                )
            elif not query or query.startswith("#"):
                continue
            elif not has_word(query):
                problems.append(f"line {number}: {query!r} has no letter or digit; remove it")
            elif (folded := fold(query)) in first_line:
                duplicates.append(f"line {number}: {query!r} repeats line {first_line[folded]}")
            else:
                first_line[folded] = number
                origin = f"{path.name}:{number}"
                row = {"query_id": len(rows), "query": query, "folded": folded, "origin": origin}
                rows.append(row)
    if problems:
        raise DataError(f"{path} cannot be used as a query list:\n  {_shown(problems)}")
    if not rows:
        raise DataError(f"{path} holds no query: write one a line (blank and # lines do not count)")
    if duplicates:
        counted = f"{len(duplicates)} duplicate(s) in {path}, left out:"
        print(f"{counted}\n  {_shown(duplicates)}", file=sys.stderr)
    write_table(pa.Table.from_pylist(rows, QUERIES), paths.table("queries"), QUERIES)
    return {"lines": len(lines), "duplicates": len(duplicates), "queries": len(rows)}


def inputs(config: QueriesConfig) -> list[str]:
    """What of the outside the table depends on: the content, not the place, of the list."""
    return [file_sha256(Path(config.path))]


def _read_lines(path: Path) -> list[bytes]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"queries.path = {path}: {error.strerror}; give a text file") from error
    return content.removeprefix(b"\xef\xbb\xbf").splitlines()


def _decoded(line: bytes) -> str | None:
    try:
        return " ".join(line.decode().split())
    except UnicodeDecodeError:
        return None


def _shown(messages: list[str]) -> str:
    more = [f"(+{len(messages) - SHOWN} more)"] if len(messages) > SHOWN else []
    return "\n  ".join(messages[:SHOWN] + more)
