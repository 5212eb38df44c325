"""The perceptual hash, contrast and mean colour of every crawled image.

A pool of processes reads the crawl's tars once, in pieces of 4,096 images. A finished piece is a
file in tables/features/ and is not decoded again, neither after a kill nor when the curation rules
change.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import cv2
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from data_tools.curate.perceptual_hash import decode, features_of, reduction_for
from data_tools.tables.schema import DataError, DatasetPaths, write_table
from data_tools.tables.scratch import files_pattern
from data_tools.work.processes import in_processes
from data_tools.work.progress import StageProgress

IMAGES_PER_PIECE = 4096
# Raise it when the hash or the decoding changes: pieces of another version are made again.
VERSION = 1

FEATURES = pa.schema(
    [
        ("uid", pa.string()),
        ("hash", pa.uint64()),
        ("grey_std", pa.float32()),
        ("red", pa.uint8()),
        ("green", pa.uint8()),
        ("blue", pa.uint8()),
    ]
)


@dataclass(frozen=True)
class Piece:
    """Up to 4,096 images of one tar of the crawl, in the order of their offsets."""

    tar: Path
    target: Path
    uids: tuple[str, ...]
    places: tuple[tuple[int, int, int, int], ...]
    """Offset and size in the tar, width and height, of each image."""

    @property
    def fingerprint(self) -> str:
        text = repr((VERSION, self.uids, self.places))
        return xxhash.xxh3_64_hexdigest(text.encode())


def folder(paths: DatasetPaths) -> Path:
    return paths.root / "tables" / "features"


def write_features(paths: DatasetPaths, database: duckdb.DuckDBPyConnection, processes: int) -> int:
    """Bring tables/features/ up to date with fetched.parquet; return the number of decoded images.

    DataError names a tar that is gone, or an image that does not decode.
    """
    folder(paths).mkdir(parents=True, exist_ok=True)
    total = pq.read_metadata(paths.table("fetched")).num_rows
    decoded, wanted = 0, set()
    with StageProgress("decode", total) as progress:

        def missing() -> Iterator[tuple[Piece]]:
            for piece in pieces(paths, database):
                wanted.add(piece.target.name)
                if _is_done(piece):
                    progress.advance(len(piece.uids))
                else:
                    yield (piece,)

        for count in in_processes(write_piece, missing(), processes):
            decoded += count
            progress.advance(count)
    for file in folder(paths).iterdir():
        if file.name not in wanted:
            file.unlink()
    return decoded


def pieces(paths: DatasetPaths, database: duckdb.DuckDBPyConnection) -> Iterator[Piece]:
    """Yield the pieces of the crawl, sorted by tar and offset."""
    rows = database.cursor().sql(
        'SELECT shard, uid, "offset", size, width, height FROM read_parquet($fetched) '
        'ORDER BY shard, "offset"',
        params={"fetched": files_pattern(paths.table("fetched"))},
    )
    reader = rows.to_arrow_reader(IMAGES_PER_PIECE)
    flat = (row for batch in reader for row in zip(*(c.to_pylist() for c in batch.columns)))
    for shard, group in groupby(flat, key=lambda row: row[0]):
        number = 0
        while part := [row for _, row in zip(range(IMAGES_PER_PIECE), group)]:
            name = f"{shard.replace('/', '--')}-{number:05d}.parquet"
            yield Piece(
                paths.crawl / shard,
                folder(paths) / name,
                tuple(row[1] for row in part),
                tuple(row[2:] for row in part),
            )
            number += 1


def _is_done(piece: Piece) -> bool:
    try:
        metadata = pq.read_schema(piece.target).metadata or {}
    except (OSError, pa.ArrowInvalid):
        return False
    return metadata.get(b"fingerprint") == piece.fingerprint.encode()


def write_piece(piece: Piece) -> int:
    """Decode the images of a piece and write their features, whole or not at all; return the number
    of images."""
    cv2.setNumThreads(1)
    columns: dict[str, list] = {name: [] for name in FEATURES.names}
    try:
        descriptor = os.open(piece.tar, os.O_RDONLY)
    except FileNotFoundError:
        raise DataError(f"{piece.tar} is gone: run the crawl again") from None
    try:
        for uid, (offset, size, width, height) in zip(piece.uids, piece.places):
            image = decode(os.pread(descriptor, size, offset), reduction_for(width, height))
            if image is None:
                raise DataError(
                    f"{piece.tar} has no image at {offset}, as it had after the crawl: it was "
                    "changed since. Delete its part and run the crawl again"
                )
            features = features_of(image)
            columns["uid"].append(uid)
            for name in FEATURES.names[1:]:
                columns[name].append(getattr(features, name))
    finally:
        os.close(descriptor)
    schema = FEATURES.with_metadata({"fingerprint": piece.fingerprint})
    write_table(pa.table(columns, schema=schema), piece.target, schema)
    return len(piece.uids)
