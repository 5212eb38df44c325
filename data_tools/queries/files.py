"""Input files of the queries stage: patterns, compression, lines, tables, fingerprints."""

from __future__ import annotations

import csv
import glob
import io
import json
import lzma
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from data_tools.ground.aside import write_text_aside
from data_tools.tables.schema import DataError
from data_tools.tables.stream import open_table
from data_tools.text.quoting import Layout, text_rows
from data_tools.text.streams import RecodingError, decompressed, other_kind, utf8

COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
# A line that is longer than a piece is cut at a space, so that memory stays flat; a file without
# spaces for LONGEST_WORD_BYTES is refused as no text.
LONGEST_PIECE_BYTES = 1 << 20
LONGEST_WORD_BYTES = 1 << 26


def expand(patterns: Sequence[str]) -> list[Path]:
    """The files of all patterns, none twice; those of one pattern are sorted by name. A pattern
    that is itself the name of a file means that file, even with "[" in it. Raises DataError if a
    pattern matches no file."""
    distinct: dict[Path, None] = {}
    for pattern in patterns:
        names = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern, recursive=True))
        files = [Path(name) for name in names if os.path.isfile(name)]
        if not files:
            raise DataError(f"{pattern}: no such file; give a file or a glob pattern")
        distinct.update(dict.fromkeys(files))
    return list(distinct)


def plain_name(path: Path) -> str:
    """The file's name without the suffix of its compression."""
    return path.stem if path.suffix in COMPRESSED else path.name


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file for its decompressed bytes. Errors of reading, also later in the `with` block,
    become a DataError that names the file."""
    try:
        with path.open("rb") as file:
            yield decompressed(file)
    except (EOFError, lzma.LZMAError) as error:
        raise _cut_off(path, error) from error
    except OSError as error:
        if error.errno is None:  # pyarrow's, of the compressed bytes
            raise _cut_off(path, error) from error
        if isinstance(error, IsADirectoryError):
            raise DataError(f"{path}: is a folder; give the files in it") from error
        raise DataError(f"{path}: {error.strerror}; give a readable file") from error


def _cut_off(path: Path, error: Exception) -> DataError:
    kind = f"not {path.suffix[1:]}" if path.suffix in COMPRESSED else "broken"
    return DataError(f"{path} is cut off or {kind}: {error}; copy or download it again")


@contextmanager
def opened_text(path: Path) -> Iterator[io.BufferedReader]:
    """Open a text file for its bytes as UTF-8; utf-16 and utf-32 are recoded. DataError as
    `opened`, and for a file that is no text by its first bytes."""
    with opened(path) as file:
        if other := other_kind(file.peek(16)):
            raise DataError(f"{path} is by its first bytes {other}")
        try:
            yield utf8(file)
        except RecodingError as error:
            raise DataError(f"{path}: {error}; save the file as UTF-8") from error


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, line without its end) of a UTF-8 text file. A line of megabytes comes
    in pieces, which have the same number. DataError names a line that is not UTF-8."""
    with opened_text(path) as file:
        number, kept = 1, b""
        while piece := file.readline(LONGEST_PIECE_BYTES):
            ended = piece.endswith(b"\n") or len(piece) < LONGEST_PIECE_BYTES
            piece = kept + piece
            # a piece that ends at the limit is cut after its last space; the rest goes to the next
            cut = len(piece) if ended else piece.rfind(b" ") + 1
            if cut:
                yield number, _decoded(piece[:cut], path, number)
            kept = piece[cut:]
            if len(kept) > LONGEST_WORD_BYTES:
                raise DataError(f"{path}: line {number} has 64 MiB without a space: is it text?")
            number += ended
        if kept:
            yield number, _decoded(kept, path, number)


def _decoded(piece: bytes, path: Path, number: int) -> str:
    try:
        return piece.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: line {number} is not UTF-8 ({piece[error.start : error.start + 20]!r}): save "
            f"the file as UTF-8"
        ) from None


def is_table(path: Path) -> bool:
    """Whether the name is that of a csv, tsv or parquet table; csv and tsv may be compressed."""
    return path.suffix == ".parquet" or Path(plain_name(path)).suffix in (".csv", ".tsv")


def table_rows(path: Path, columns: Sequence[str], setting: str) -> Iterator[tuple[str, ...]]:
    """Yield the named columns of a csv, tsv or parquet table row by row, as text ("" for null).

    Raises DataError when a column is missing (naming those present and the `setting` to change) or
    the table is not readable.
    """
    reader = _parquet_rows if path.suffix == ".parquet" else _csv_rows
    yield from reader(path, columns, setting)


def _check_columns(
    path: Path, columns: Sequence[str], present: Sequence[str], setting: str
) -> None:
    missing = [name for name in columns if name not in present]
    if missing:
        headless = ", or give a list without a header line as .txt" if len(present) == 1 else ""
        raise DataError(
            f"{path} has no column {', '.join(missing)}; it has {', '.join(present) or 'none'}: "
            f"set {setting}{headless}"
        )
    for name in columns:
        if present.count(name) > 1:
            raise DataError(
                f"{path}: the column {name} is there {present.count(name)} times: rename all but "
                f"one, or set {setting} to another"
            )


def _csv_rows(path: Path, columns: Sequence[str], setting: str) -> Iterator[tuple[str, ...]]:
    tabs = Path(plain_name(path)).suffix == ".tsv"
    if not tabs:
        _check_quotes(path)
    texts = (f"{text}\n" for _, text in lines(path))
    # in tab-separated files quotes are part of the text
    rows = csv.reader(texts, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(texts)
    try:
        header = next((row for row in rows if row), [])
        _check_columns(path, columns, header, setting)
        places = [header.index(name) for name in columns]
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{path}: line {rows.line_num} has {len(row)} fields, the header "
                    f"{len(header)}: quote fields that hold the separator"
                )
            yield tuple(row[place] for place in places)
    except csv.Error as error:
        # "field larger than field limit (131072)"
        raise DataError(
            f"{path}: line {rows.line_num}: a cell is too long, or broken ({error}): write one "
            "text per row"
        ) from error


def _check_quotes(path: Path) -> None:
    """Raise a DataError with the line in which a stray double quote swallows lines."""
    with opened_text(path) as file:
        for row in text_rows(file, Layout(b",", quoted=True)):
            if row.swallowing:
                shown = row.content.partition(b"\n")[0].decode(errors="replace").strip()[:80]
                raise DataError(
                    f"{path}: line {row.quote_line}: a double quote begins a cell that swallows "
                    f"{row.last_line - row.quote_line} line(s): {row.swallowing} ({shown!r}). "
                    "Write the quote twice within a cell in quotes, or give the table as .tsv, "
                    "where quotes are text"
                )


def _parquet_rows(path: Path, columns: Sequence[str], setting: str) -> Iterator[tuple[str, ...]]:
    number = 0
    try:
        with open_table(path) as file:
            _check_columns(path, columns, file.schema_arrow.names, setting)
            for name in columns:
                if pa.types.is_nested(kind := file.schema_arrow.field(name).type):
                    raise DataError(
                        f"{path} is not a readable parquet table of text: the column {name} holds "
                        f"{kind}; write one text per row"
                    )
            for batch in file.iter_batches(batch_size=8192, columns=list(dict.fromkeys(columns))):
                texts = [_texts(batch.column(name), path, name, number) for name in columns]
                number += batch.num_rows
                for row in zip(*texts, strict=True):
                    yield tuple(text or "" for text in row)
    except pa.ArrowException as error:
        raise DataError(
            f"{path} is not a readable parquet table of text: {error}; write it again"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; give a readable file") from error


def _texts(values: pa.Array, path: Path, name: str, before: int) -> list[str | None]:
    """The values as text; nan is a null. `before`: the number of rows before these."""
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), None, values)
    try:
        return values.cast(pa.string()).to_pylist()
    except pa.ArrowInvalid:
        raw = values.cast(pa.binary()).to_pylist()
        for row, value in enumerate(raw, start=before + 1):
            try:
                (value or b"").decode()
            except UnicodeDecodeError:
                raise DataError(
                    f"{path}: row {row}: its {name} is not UTF-8 ({value[:40]!r}): write it as text"
                ) from None
        raise


def content_hashes(paths: Sequence[Path], memory: Path) -> list[str]:
    """32 hex digits of xxh3-128 over each file's bytes.

    The file `memory` keeps the hashes by name, size and times of change, because every command of a
    job asks for them, and a dump of 20 GB should be read once. It is not written if its folder does
    not exist.
    """
    known = _remembered(memory)
    hashes: dict[str, list[int | str]] = {}
    for path in paths:
        name, stamp = str(path.absolute()), _stamp(path)
        entry = known.get(name, [])
        hashes[name] = entry if entry[:-1] == stamp else [*stamp, content_hash(path)]
    if hashes != known and memory.parent.is_dir():
        write_text_aside(memory, json.dumps(hashes))
    return [str(hashes[str(path.absolute())][-1]) for path in paths]


def _remembered(memory: Path) -> dict[str, list[int | str]]:
    try:
        stored = json.loads(memory.read_text())
        return {name: list(entry) for name, entry in stored.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _stamp(path: Path) -> list[int | str]:
    # the time of the inode too: cp -p and touch can set the time of change back
    try:
        state = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns]


def content_hash(path: Path) -> str:
    """32 hex digits of xxh3-128 over a file's bytes. Raises DataError if it can't be read."""
    digest = xxhash.xxh3_128()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    except OSError as error:
        raise _unreadable(path, error) from error
    return digest.hexdigest()


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: {error.strerror}; give a readable file")
