"""Rows of JSON, read as a stream: one object per line, or one list in a document.

Which of the two a file holds is told by how it begins, because JSON Lines are often named .json.
"""

from __future__ import annotations

import codecs
import io
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

import pyarrow as pa

from data_tools.config import PoolConfig
from data_tools.match.pool.columns import ROLES, Batch, alternatives, convert
from data_tools.match.pool.files import FileError, PoolFile

Row = dict[str, Any]
MAX_ROW_BYTES = 16 << 20
READ_BYTES = 1 << 20
BETWEEN_ROWS = re.compile(r"[\s,]*")


def json_rows(
    file: PoolFile, stream: io.BufferedReader, config: PoolConfig
) -> Iterator[Row | None]:
    """Yield the rows of a file; None for what is no row. Raises FileError for a document in which
    no list of rows is found, or which ends early or is broken."""
    if _is_list(file, stream, config):
        return list_rows(stream, (config.records_field or "") if file.kind == ".json" else "")
    if file.kind == ".jsonl" or not stream.peek(READ_BYTES).strip():
        return line_rows(stream)
    return _lines_named_json(stream, config)


def faults(file: PoolFile, stream: io.BufferedReader, config: PoolConfig) -> Iterator[str]:
    """Yield where an unreadable row is, and why it is."""
    if not _is_list(file, stream, config):
        for number, line in enumerate(_lines(stream), start=1):
            wrong = _what_is_wrong_with_line(line, config) if line.strip() else ""
            if wrong:
                yield f"line {number:,} {wrong}"
        return
    for number, row in enumerate(json_rows(file, stream, config), start=1):
        wrong = "is no JSON object" if row is None else _what_is_wrong(row, config)
        if wrong:
            yield f"item {number:,} of its list {wrong}"


def _is_list(file: PoolFile, stream: io.BufferedReader, config: PoolConfig) -> bool:
    if file.kind == ".json" and config.records_field:
        return True
    return stream.peek(READ_BYTES).lstrip()[:1] == b"["


def _what_is_wrong_with_line(line: bytes, config: PoolConfig) -> str:
    if len(line) == MAX_ROW_BYTES:
        return "is longer than 16 MiB"
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return f"is not UTF-8 ({line[error.start : error.start + 12]!r})"
    except (ValueError, RecursionError) as error:
        return f"is no JSON ({error}): {line[:40]!r}"
    if not isinstance(row, dict):
        return f"is a {type(row).__name__}, not an object"
    return _what_is_wrong(row, config)


def _what_is_wrong(row: Row, config: PoolConfig) -> str:
    """Why a row is unreadable; "" if it is not."""
    for role, read in (("url", _encoded), ("caption", _captions)):
        value = _value(row, alternatives(config, role))
        try:
            read(value)
        except TypeError as error:
            return f"has a {role} that is {error}"
        except UnicodeEncodeError:
            return f"has a {role} that is not UTF-8, or holds half of a surrogate pair"
    return ""


def _lines_named_json(stream: IO[bytes], config: PoolConfig) -> Iterator[Row | None]:
    """The rows of a .json file that is no list: those of its lines, if the first is an object by
    itself."""
    lines = _lines(stream)
    first = next((line for line in lines if line.strip()), b"")
    row = _row(first)
    if row is None:
        raise FileError(
            "its document is no list, and its first line no object by itself: set "
            "sources.pool.records_field to the field that holds the list of rows"
        )
    named = {name for role in ("url", "caption") for name in alternatives(config, role)}
    lists = [name for name, value in row.items() if value and _holds_objects(value)]
    if lists and not named & row.keys():
        raise FileError(
            f"its document is no list, but an object with the list(s) {', '.join(lists)}: set "
            f"sources.pool.records_field={lists[0]}"
        )
    return line_rows(itertools.chain([first], lines))


def _holds_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    """The lines; one that is longer than MAX_ROW_BYTES comes cut off, its end is left out."""
    while line := stream.readline(MAX_ROW_BYTES):
        if len(line) == MAX_ROW_BYTES and not line.endswith(b"\n"):
            while (rest := stream.readline(READ_BYTES)) and not rest.endswith(b"\n"):
                pass
        yield line


def line_rows(lines: IO[bytes] | Iterable[bytes]) -> Iterator[Row | None]:
    """Yield the object of each line; None for a line that is no JSON object."""
    if isinstance(lines, io.IOBase):
        lines = _lines(lines)  # type: ignore[arg-type]
    return (_row(line) for line in lines if line.strip())


def list_rows(stream: IO[bytes], field: str) -> Iterator[Row | None]:
    """Yield the items of the list in `field`, or of the document itself if `field` is empty; None
    for an item that is no object. Raises FileError if the document ends early or is broken."""
    text = _Window(stream)
    at = _opening(text, field)
    decoder = json.JSONDecoder()
    while True:
        at = BETWEEN_ROWS.match(text.content, at).end()  # type: ignore[union-attr]
        if text.content.startswith("]", at):
            break
        try:
            row, at = decoder.raw_decode(text.content, at)
        except (ValueError, RecursionError) as error:
            too_long = len(text.content) - at > MAX_ROW_BYTES
            if too_long or not text.extend(keep_from=at):
                raise FileError(
                    f"it is no whole JSON document: {error}; write it again, or leave it out of "
                    "sources.pool.paths"
                ) from error
            at = 0
        else:
            yield row if isinstance(row, dict) else None
    if not field:
        _check_the_end(text, at + 1)


def _opening(text: _Window, field: str) -> int:
    """The place after the bracket that opens the list; of several fields of the name, the first
    that holds an object."""
    if not field:
        match = re.match(r"\s*\[", text.content)
        if not match:
            raise FileError("its document is no list: set sources.pool.records_field")
        return match.end()
    full = re.compile(rf'"{re.escape(field)}"\s*:\s*\[(?=\s*\{{)')
    empty = re.compile(rf'"{re.escape(field)}"\s*:\s*\[')
    seen_empty = False
    while not (found := full.search(text.content)):
        seen_empty = seen_empty or bool(empty.search(text.content))
        # what may be the beginning of the field is kept
        if not text.extend(keep_from=max(len(text.content) - len(field) - 1000, 0)):
            break
    if found:
        return found.end()
    if not seen_empty:
        raise FileError(
            f"its field {field!r} is no list: set sources.pool.records_field to the field that "
            "holds the list of rows, or to null if the file is that list"
        )
    text.content = "]"
    return 0


def _check_the_end(text: _Window, at: int) -> None:
    rest = text.content[at:].strip()
    while not rest and text.extend(keep_from=len(text.content)):
        rest = text.content.strip()
    if rest:
        raise FileError(
            f"it goes on after the end of its list ({rest[:40]!r}): write one list, or an object "
            "per line (.jsonl)"
        )


def batch_of(rows: list[Row], config: PoolConfig) -> Batch:
    """The rows as columns by role; those whose URL or caption is no text are left out."""
    names = {role: alternatives(config, role) for role in ROLES if any(alternatives(config, role))}
    others = [role for role in names if role not in ("url", "caption")]
    lists: dict[str, list[bytes | None]] = {role: [] for role in names}
    urls, captions = lists["url"], lists["caption"]
    num_broken = 0
    for row in rows:
        try:
            url = _encoded(_value(row, names["url"]))
            texts = _captions(_value(row, names["caption"]))
        except (TypeError, UnicodeEncodeError):  # UnicodeEncodeError: half of a surrogate pair
            num_broken += 1
            continue
        for text in texts:
            urls.append(url)
            captions.append(text)
            for role in others:
                value = _value(row, names[role])
                cell = None if value is None else str(value).encode(errors="replace")
                lists[role].append(cell)
    columns = {
        role: convert(config, role, pa.array(values, pa.binary())) for role, values in lists.items()
    }
    return Batch(columns, num_broken, len(urls) - (len(rows) - num_broken))


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
        row = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _value(row: Row, names: list[str]) -> object:
    return next((row[name] for name in names if name in row), None)


def _captions(value: object) -> Sequence[bytes | None]:
    """The caption, or those of a list; an empty list is a null."""
    if not isinstance(value, list):
        return (_encoded(value),)
    return [_encoded(text) for text in value] or [None]


def _encoded(text: object) -> bytes | None:
    if isinstance(text, str):
        return text.encode()
    if text is None or (isinstance(text, float) and math.isnan(text)):  # as pandas writes a null
        return None
    raise TypeError(f"{type(text).__name__}, not text")
