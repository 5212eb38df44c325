"""The kept pairs as a stream, ordered by the hash of their URL, with the boxes of the faces that
are to be blurred.

The order by hash puts different sites next to each other, so that no site is asked for many images
at once. DuckDB sorts and joins on disk: 400 million pairs take as much memory as one million.
"""

from __future__ import annotations

import glob
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from data_tools.config.crawl import FaceBoxesConfig
from data_tools.crawl.part_plan import BOXES, ROWS
from data_tools.tables.schema import DataError, canonical_url
from data_tools.tables.scratch import ROWS_PER_BATCH, scratch_database
from data_tools.tables.stream import open_table

_KEYED = pa.schema([("key", pa.uint64()), ("uid", pa.string()), ("url", pa.string())])
_FACES = pa.schema([("url", pa.string()), ("face_boxes", BOXES)])


def source_of(kept: Path, boxes: FaceBoxesConfig) -> dict[str, object]:
    """What the rows depend on, as JSON. Raises DataError if kept.parquet or a table of boxes is
    missing."""
    if not kept.exists():
        raise DataError(
            f"{kept} does not exist: run python -m data_tools.build --stage balance first"
        )
    if pq.read_metadata(kept).num_rows == 0:
        raise DataError(
            "no pair was kept, so there is nothing to crawl: give other queries or sources"
        )
    files = boxes_inputs(boxes)
    return {
        "kept": _identity(kept),
        "face_boxes": files,
        "columns": [boxes.url_column, boxes.boxes_column] if files else [],
    }


def boxes_inputs(boxes: FaceBoxesConfig) -> list[list]:
    """Name, size and time of change of every table of boxes. Raises DataError for a pattern without
    a file."""
    return [[str(file), *_identity(file)] for file in _boxes_files(boxes)]


def sorted_rows(kept: Path, boxes: FaceBoxesConfig, folder: Path) -> Iterator[pa.Table]:
    """Yield ROWS tables, sorted by (hash of the URL, URL, uid). DuckDB spills below `folder`.
    Raises DataError for a table that lacks a column or holds a box that is none."""
    scratch = folder / f".sort.{uuid.uuid4().hex[:8]}.tmp"
    files = _boxes_files(boxes)
    raised: list[DataError] = []
    try:
        with scratch_database(scratch) as database:
            database.register(
                "kept", pa.RecordBatchReader.from_batches(_KEYED, _noted(_keyed(kept), raised))
            )
            if files:
                reader = pa.RecordBatchReader.from_batches(
                    _FACES, _noted(_faces(files, boxes), raised)
                )
                database.register("faces", reader)
                # Two tables that know one image: the faces of both are blurred. Their order is part
                # of the part's digest, so it must not be that in which threads read the tables.
                rows = database.sql(
                    "SELECT uid, k.url AS url, f.face_boxes AS face_boxes FROM kept k LEFT JOIN"
                    " (SELECT url, flatten(list(face_boxes ORDER BY face_boxes))"
                    " AS face_boxes FROM faces"
                    " WHERE face_boxes IS NOT NULL GROUP BY url)"
                    " f ON k.url = f.url ORDER BY key, k.url, uid"
                )
            else:
                rows = database.sql(
                    "SELECT uid, url, NULL AS face_boxes FROM kept ORDER BY key, url, uid"
                )
            for batch in rows.to_arrow_reader(ROWS_PER_BATCH):
                yield pa.Table.from_batches([batch]).cast(ROWS)
    except duckdb.Error as error:
        if raised:
            raise raised[0] from None
        raise DataError(f"the kept pairs could not be sorted in {scratch}: {error}") from error


def _noted(batches: Iterator[pa.RecordBatch], raised: list[DataError]) -> Iterator[pa.RecordBatch]:
    """Pass on `batches`, and append what they raise to `raised`: DuckDB replaces it by an error of
    its own."""
    try:
        yield from batches
    except DataError as error:
        raised.append(error)
        raise


def _keyed(kept: Path) -> Iterator[pa.RecordBatch]:
    with open_table(kept) as file:
        missing = {"uid", "url"} - set(file.schema_arrow.names)
        if missing:
            raise DataError(f"{kept} lacks the column(s) {sorted(missing)}: delete it, run again")
        for batch in file.iter_batches(ROWS_PER_BATCH, columns=["uid", "url"]):
            urls = [_canonical(url or "") for url in batch["url"].to_pylist()]
            keys = [xxhash.xxh3_64_intdigest(url.encode("utf-8", "replace")) for url in urls]
            yield pa.record_batch(
                [pa.array(keys, pa.uint64()), batch["uid"].cast(pa.string()), pa.array(urls)],
                schema=_KEYED,
            )


def _faces(files: list[Path], boxes: FaceBoxesConfig) -> Iterator[pa.RecordBatch]:
    columns = [boxes.url_column, boxes.boxes_column]
    for path in files:
        with open_table(path) as file:
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                raise DataError(
                    f"{path} lacks the column(s) {missing}, it has {file.schema_arrow.names}: give "
                    "crawl.face_boxes.url_column and .boxes_column"
                )
            for batch in file.iter_batches(ROWS_PER_BATCH, columns=columns):
                urls = [_canonical(url or "") for url in batch[boxes.url_column].to_pylist()]
                faces = [_checked(each, path) for each in batch[boxes.boxes_column].to_pylist()]
                yield pa.record_batch([pa.array(urls), pa.array(faces, BOXES)], schema=_FACES)


def _checked(boxes: list | None, path: Path) -> list | None:
    for box in boxes or []:
        if len(box) != 4 or not all(0 <= side <= 1 for side in box):
            raise DataError(f"{path}: {box} is no box [x_min, y_min, x_max, y_max] from 0 to 1")
    return boxes


def _canonical(url: str) -> str:
    """The canonical form, from which the uid is made. A URL that has none stays as it is, and the
    guard refuses it."""
    try:
        return canonical_url(url)
    except ValueError:
        return url


def _boxes_files(boxes: FaceBoxesConfig) -> list[Path]:
    files = []
    for pattern in boxes.paths:
        # a name that is a file is no pattern, even with "[" in it
        names = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern))
        if not names:
            raise DataError(f"crawl.face_boxes.paths: {pattern} names no file")
        files += [Path(name) for name in names]
    return files


def _identity(file: Path) -> list[int]:
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns]
