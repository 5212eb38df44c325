"""Where a search stands: an append-only file with one line for each query that got its answer.

    {"query": "ice hockey", "candidates": [{"url": ..., "caption": ..., ...}, ...]}

A line is written by one write() when the query's last page has come. A killed run can therefore
leave at most one torn line, which counts as not written: its query is asked again.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from data_tools.config import fingerprint
from data_tools.schema import DataError
from data_tools.sources.base import Candidate, SearchSource

FORMAT = 1


class Cursor:
    """`answers` maps each finished query to its candidates, best first."""

    def __init__(self, folder: Path, source: SearchSource, limit: int) -> None:
        name = f"{source.name}-{fingerprint(FORMAT, source.name, limit, source.settings)}.jsonl"
        self.path = folder / name
        self.answers: dict[str, list[Candidate]] = {}

    def __enter__(self) -> Cursor:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = self._read() if self.path.exists() else False
        try:
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise DataError(f"{self.path} cannot be written: {error.strerror}") from error
        if torn:
            self._file.write(b"\n")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, query: str, candidates: list[Candidate]) -> None:
        record = {"query": query, "candidates": [asdict(candidate) for candidate in candidates]}
        self._file.write(json.dumps(record).encode() + b"\n")
        self.answers[query] = candidates

    def _read(self) -> bool:
        """Fill `answers`; True when the last line has no end."""
        line = b"\n"
        with self.path.open("rb") as file:
            for line in file:
                try:
                    record = json.loads(line)
                    found = [Candidate(**candidate) for candidate in record["candidates"]]
                    self.answers[record["query"]] = found
                except (ValueError, TypeError, KeyError):
                    continue  # torn by a kill
        return not line.endswith(b"\n")
