"""How far a search has come: an append-only file with one line per query that was answered.

    {"query": "ice hockey", "candidates": [{"url": ..., "caption": ..., ...}, ...]}

A line is written by one write() when the query's last page has come. A killed run can therefore
leave at most one torn line, the last one; it is cut off, and its query is asked again. Memory holds
the offsets of the lines, not their content.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from data_tools.config import fingerprint
from data_tools.search.base import Candidate, SearchSource
from data_tools.tables.schema import DataError

FORMAT = 1
START = '{"query": '
END = b"]}\n"


class Cursor:
    """The answers of one source for one limit; `query in cursor` is true if it was answered."""

    def __init__(self, folder: Path, source: SearchSource, limit: int) -> None:
        name = f"{source.name}-{fingerprint(FORMAT, source.name, limit, source.settings)}.jsonl"
        self.path = folder / name
        self._offsets: dict[str, int] = {}
        self._size = 0

    def __enter__(self) -> Cursor:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._file = self.path.open("a+b", buffering=0)
        except OSError as error:
            raise DataError(f"{self.path} cannot be written: {error.strerror}") from error
        self._read()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def __contains__(self, query: object) -> bool:
        return query in self._offsets

    def __len__(self) -> int:
        return len(self._offsets)

    def add(self, query: str, candidates: Iterable[Candidate]) -> None:
        """Append an answer. Raises OSError if the disk is full; earlier answers stay whole."""
        record = {"query": query, "candidates": [asdict(candidate) for candidate in candidates]}
        line = json.dumps(record).encode() + b"\n"
        written = self._file.write(line)
        if written != len(line):
            self._file.truncate(self._size)
            raise OSError(f"{self.path}: the disk took {written} of {len(line)} bytes: make room")
        self._offsets[query] = self._size
        self._size += len(line)

    def read(self, query: str) -> list[Candidate]:
        """The answer to a query that is in the cursor, best first. Raises DataError for a damaged
        line."""
        offset = self._offsets[query]
        with self.path.open("rb") as file:
            file.seek(offset)
            line = file.readline()
        try:
            record = json.loads(line)
            return [Candidate(**candidate) for candidate in record["candidates"]]
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{self.path}: the line at byte {offset} ({query!r}) is damaged: delete that line, "
                "and the query is asked again"
            ) from error

    def _read(self) -> None:
        """Find the offset of each line, and cut off a torn one. Only the beginning of a line is
        parsed, because the file holds gigabytes at 500,000 queries."""
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                query = _query_of(line)
                if query is not None:
                    self._offsets[query] = self._size
                self._size += len(line)
        if self._size < os.path.getsize(self.path):
            self._file.truncate(self._size)


def _query_of(line: bytes) -> str | None:
    """The query of a line; None if the line is no whole record."""
    try:
        text = line.decode("ascii")  # json.dumps escapes all else
        query, _ = json.JSONDecoder().raw_decode(text, len(START))
    except ValueError:
        return None
    whole = text.startswith(START) and line.endswith(END) and isinstance(query, str)
    return query if whole else None
