"""Answers of single requests. They are kept so that a query of many pages that was interrupted goes
on with the next page: with a quota of 5 requests per hour, a query of 12 pages would else never
end.

They are lines `{"key": ..., "at": ..., "answer": ...}` of an append-only file. When it holds
MAX_BYTES, it replaces the old file and a new one is begun. The answers lost that way are old: only
the few queries that were not finished need theirs.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

MAX_BYTES = 64_000_000
# An older answer is not used; the server is asked again.
MAX_AGE_S = 7 * 86400.0


class PageStore:
    """The answers kept in one file and its predecessor. Damaged and torn lines are ignored. Memory
    holds only the offsets of the lines.

    It is safe for threads, not for processes: the build holds a lock on the data folder.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.old = path, path.with_name(f"{path.name}.old")
        self._lock = threading.Lock()
        self._places: dict[str, tuple[Path, int]] = {}
        for file in (self.old, self.path):
            if file.exists():
                self._index(file)

    def get(self, key: str) -> Any | None:
        """The kept answer, or None."""
        with self._lock:
            if key not in self._places:
                return None
            path, offset = self._places[key]
            with path.open("rb") as file:
                file.seek(offset)
                record = _record(file.readline())
        return None if record is None else record["answer"]

    def put(self, key: str, answer: Any) -> None:
        """Keep an answer."""
        line = json.dumps({"key": key, "at": time.time(), "answer": answer}).encode() + b"\n"
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and self.path.stat().st_size + len(line) > MAX_BYTES:
                os.replace(self.path, self.old)
                self._places = {
                    name: (self.old, offset)
                    for name, (path, offset) in self._places.items()
                    if path == self.path
                }
            with self.path.open("ab", buffering=0) as file:
                offset = file.tell()
                if offset and not self._ends_whole():
                    offset += file.write(b"\n")
                file.write(line)
            self._places[key] = (self.path, offset)

    def _ends_whole(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

    def _index(self, path: Path) -> None:
        offset = 0
        with path.open("rb") as file:
            for line in file:
                record = _record(line)
                if record is not None and time.time() - record["at"] < MAX_AGE_S:
                    self._places[record["key"]] = (path, offset)
                offset += len(line)


def page_store(name: str, folder: Path | None) -> PageStore | None:
    """The store of one source in the folder of cursors; None without a folder."""
    return PageStore(folder / f"{name}.pages") if folder else None


def page_key(endpoint: str, params: Mapping[str, str]) -> str:
    """32 hex digits that identify a request; `params` must not contain the server's key."""
    asked = json.dumps([endpoint, sorted(params.items())])
    return xxhash.xxh3_128_hexdigest(asked.encode())


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
        whole = isinstance(record["key"], str) and isinstance(record["at"], float)
        return record if whole and "answer" in record else None
    except (ValueError, TypeError, KeyError):
        return None
