"""Drop and list training images that are, or nearly are, images of the evaluation sets.

A model that was trained on pictures of a test is not measured by that test. Colours are not
compared here: it is better to drop an image too many.
"""

from __future__ import annotations

import itertools
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import duckdb
import pyarrow as pa

from data_tools.curate.near_duplicates import block_masks
from data_tools.curate.perceptual_hash import MIN_STD_TO_COMPARE, decode, features_of
from data_tools.dataset.manifest import ManifestError, load_manifest
from data_tools.tables.schema import DataError
from data_tools.work.processes import in_processes
from data_tools.work.progress import StageProgress

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
IMAGES_PER_UNIT = 1000

# The rows that were dropped. `evaluation_image` is FILE or TAR::MEMBER; `distance` is the number of
# hash bits that differ.
CONTAMINATION = pa.schema(
    [("uid", pa.string()), ("evaluation_image", pa.string()), ("distance", pa.int32())]
)
_HASHES = pa.schema([("evaluation_image", pa.string()), ("hash", pa.uint64())])


def drop_contaminated(
    database: duckdb.DuckDBPyConnection, sets: list[str], max_bits: int, processes: int
) -> None:
    """Reject live pairs near an evaluation image, and list them in the table `contamination`.

    DataError names a set without images, and an image that does not decode.
    """
    hashes = pa.concat_tables(read_hashes(sets, processes))
    database.register("hashes", hashes)
    database.execute("""
        CREATE TABLE evaluation AS
        SELECT hash, min(evaluation_image) AS evaluation_image FROM hashes GROUP BY hash
        """)
    database.unregister("hashes")
    (num_hashes,) = database.execute("SELECT count(*) FROM evaluation").fetchall()[0]
    database.execute("CREATE TABLE close (uid VARCHAR, evaluation_image VARCHAR, distance INTEGER)")
    for mask in block_masks(num_hashes, max_bits):
        database.execute(f"""
            INSERT INTO close
            SELECT l.uid, e.evaluation_image, bit_count(xor(f.hash, e.hash))
            FROM live l JOIN features f USING (uid)
            JOIN evaluation e ON (f.hash & {mask}::UBIGINT) = (e.hash & {mask}::UBIGINT)
            WHERE bit_count(xor(f.hash, e.hash)) <= {max_bits}
              AND f.grey_std >= {MIN_STD_TO_COMPARE}
            """)
    database.execute("""
        CREATE TABLE contamination AS
        SELECT uid, nearest.evaluation_image AS evaluation_image, nearest.distance AS distance
        FROM (
            SELECT uid, min({'distance': distance, 'evaluation_image': evaluation_image}) AS nearest
            FROM close GROUP BY uid
        )
        """)
    database.execute("""
        INSERT INTO rejected
        SELECT uid, 'contamination', distance || ' bits from ' || evaluation_image
        FROM contamination
        """)


def read_hashes(sets: list[str], processes: int) -> Iterator[pa.Table]:
    """Yield (evaluation_image, hash) of every image of the sets. Images of one colour are left out,
    because their hash is noise."""
    with StageProgress("eval sets") as progress:
        for name in sets:
            count = 0
            for table, num_images in in_processes(_hash_unit, _units(Path(name)), processes):
                count += num_images
                progress.advance(num_images)
                yield table
            if not count:
                raise DataError(
                    f"curate.evaluation_sets has {name}, in which there is no image "
                    f"({', '.join(IMAGE_SUFFIXES)}), loose or in a tar"
                )


def evaluation_files(sets: list[str]) -> Iterator[Path]:
    """Yield every file that the hashes are read from. DataError for a manifest that cannot be
    read."""
    for name in map(Path, sets):
        for path, names in _units(name):
            yield from (path / image for image in names) if names else (path,)


def _units(path: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield units of work: a tar and no names, or a folder with the names of some of its images."""
    if path.name.endswith(".json"):
        try:
            manifest = load_manifest(path)
        except ManifestError as error:
            raise DataError(f"curate.evaluation_sets: {error}") from error
        for shard in manifest.shards:
            yield manifest.shard_path(shard), []
    elif path.is_file():
        yield path, []
    for folder, subfolders, files in os.walk(path):
        subfolders.sort()
        images = iter(sorted(n for n in files if n.lower().endswith(IMAGE_SUFFIXES)))
        while part := list(itertools.islice(images, IMAGES_PER_UNIT)):
            yield Path(folder), part
        for name in sorted(name for name in files if name.endswith(".tar")):
            yield Path(folder, name), []


def _hash_unit(path: Path, names: list[str]) -> tuple[pa.Table, int]:
    """Return the hashes of a unit, and the number of its images. Runs in a process of its own."""
    cv2.setNumThreads(1)
    rows, count = [], 0
    for name, content in _contents(path, names):
        count += 1
        image = decode(content)
        if image is None:
            raise DataError(f"{name}: an image of an evaluation set that does not decode")
        features = features_of(image)
        if features.grey_std >= MIN_STD_TO_COMPARE:
            rows.append({"evaluation_image": name, "hash": features.hash})
    return pa.Table.from_pylist(rows, schema=_HASHES), count


def _contents(path: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
    if names:
        for name in names:
            yield str(path / name), (path / name).read_bytes()
        return
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() else None
                if file is not None and member.name.lower().endswith(IMAGE_SUFFIXES):
                    yield f"{path}::{member.name}", file.read()
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{path}: a tar of an evaluation set, not readable: {error}") from error
