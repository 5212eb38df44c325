"""Rows of JSON, read as a stream: one object per line, or one list in a document."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa

from data_tools.config import PoolConfig
from data_tools.match.pool.columns import ROLES, alternatives, convert
from data_tools.tables.schema import DataError

Row = dict[str, Any]
MAX_ROW_BYTES = 16 << 20
READ_BYTES = 1 << 20
BETWEEN_ROWS = re.compile(r"[\s,]*")


def line_rows(stream: IO[bytes]) -> Iterator[Row | None]:
    """Yield the object of each line; None for a line that is no JSON object."""
    while line := stream.readline(MAX_ROW_BYTES):
        if len(line) == MAX_ROW_BYTES and not line.endswith(b"\n"):
            while (rest := stream.readline(READ_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield None
        elif line.strip():
            yield _row(line)


def list_rows(stream: IO[bytes], field: str) -> Iterator[Row | None]:
    """Yield the items of the list in `field`, or of the document itself if `field` is empty; None
    for an item that is no object. Raises DataError if the document ends early or is broken."""
    opening = re.compile(rf'"{re.escape(field)}"\s*:\s*\[' if field else r"\A\s*\[")
    text, at = _Window(stream), 0
    while not (match := opening.search(text.content)):
        if not text.extend(keep_from=max(len(text.content) - len(field) - 100, 0) if field else 0):
            where = f"field {field!r}" if field else "document"
            raise DataError(f"its {where} is no list: set sources.pool.records_field")
    at = match.end()
    decoder = json.JSONDecoder()
    while True:
        at = BETWEEN_ROWS.match(text.content, at).end()  # type: ignore[union-attr]
        if text.content.startswith("]", at):
            return
        try:
            row, at = decoder.raw_decode(text.content, at)
        except ValueError as error:
            too_long = len(text.content) - at > MAX_ROW_BYTES
            if too_long or not text.extend(keep_from=at):
                raise DataError(f"it is no whole JSON document: {error}") from error
            at = 0
        else:
            yield row if isinstance(row, dict) else None


def batch_of(rows: list[Row], config: PoolConfig) -> tuple[dict[str, pa.Array], int]:
    """(columns by role, number of rows left out because their URL or caption is no text)."""
    names = {role: alternatives(config, role) for role in ROLES}
    lists: dict[str, list[bytes | None]] = {role: [] for role in ROLES}
    num_broken = 0
    for row in rows:
        values = {role: _value(row, names[role]) for role in ROLES}
        try:
            url, caption = (_encoded(values[role]) for role in ("url", "caption"))
        except (TypeError, UnicodeEncodeError):  # UnicodeEncodeError: half of a surrogate pair
            num_broken += 1
            continue
        lists["url"].append(url)
        lists["caption"].append(caption)
        for role in ROLES[2:]:
            value = values[role]
            lists[role].append(None if value is None else str(value).encode(errors="replace"))
    columns = {
        role: convert(config, role, pa.array(values, pa.binary()))
        for role, values in lists.items()
        if any(names[role])
    }
    return columns, num_broken


class _Window:
    """The part of a stream that is being parsed, decoded as UTF-8."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        # bytes that are not UTF-8 become half surrogate pairs, so that they cost only their row
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.content = self._decoder.decode(stream.read(READ_BYTES)).removeprefix("\ufeff")

    def extend(self, keep_from: int) -> bool:
        """Drop the text before `keep_from` and read more. Returns False at the end of the
        stream."""
        more = self._stream.read(READ_BYTES)
        self.content = self.content[keep_from:] + self._decoder.decode(more, final=not more)
        return bool(more)


def _row(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _value(row: Row, names: list[str]) -> object:
    return next((row[name] for name in names if name in row), None)


def _encoded(text: object) -> bytes | None:
    if text is None:
        return None
    if not isinstance(text, str):
        raise TypeError(f"{type(text).__name__} instead of text")
    return text.encode()
