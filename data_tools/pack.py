"""The pack stage: clean pairs into shards, in one global random order, the same bytes every time.

    shards/000000.tar              {uid}.jpg, {uid}.json, {uid}.txt of each sample; plain WebDataset
    shards/000000.index.parquet    where in the tar they lie (data_tools.manifest.INDEX)
    shards/sizes.json              {"000000.tar": samples}, as open_clip and datacomp read it
    manifest.json                  written last: when it is there, the data set is whole

Samples lie in the order of a seeded hash of their uid, over all shards: candidates come grouped by
query, and a batch of one query's pictures would have near-duplicates as negatives. Memory does not
grow with the data set: DuckDB sorts and joins on disk, images are copied one by one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import sys
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from data_tools.config import DatasetJob, fingerprint
from data_tools.manifest import Manifest, ShardEntry, save_manifest
from data_tools.progress import StageProgress
from data_tools.schema import (
    BALANCED,
    FATES,
    PACKED,
    QUERIES,
    DataError,
    DatasetPaths,
    read_table,
)
from data_tools.shard_writer import ShardWriter

ROWS_PER_BATCH = 1024
SORT_MEMORY = "2GB"
OPEN_TARS = 256
# What of a job says where, how fast or by whom, and nothing about the samples.
NOT_OF_THE_DATA = {
    "out_dir": None,
    "queries": {"path"},
    "sources": {"contact", "timeout_s", "max_attempts"},
    "match": {"processes"},
    "search": {"give_up_after"},
    "crawl": {"processes", "threads", "connections_per_host", "stall_timeout_s"},
}
METADATA = [
    "url",
    "page_url",
    "license",
    "license_url",
    "attribution",
    "source",
    "query_ids",
    "captions",
    "keep_probability",
    "width",
    "height",
    "original_width",
    "original_height",
    "sha256",
]


def run(job: DatasetJob, paths: DatasetPaths) -> dict[str, int]:
    """Write shards, indexes, sizes.json and the manifest. The shards of an earlier run of this job
    are replaced; those of another job are refused by a DataError, before anything is written."""
    made_from = data_fingerprint(job, paths)
    refuse_other_data_set(paths, made_from)
    for leftover in paths.root.glob(".shards.*.tmp"):
        shutil.rmtree(leftover)
    aside = paths.root / f".shards.{uuid.uuid4().hex[:8]}.tmp"
    try:
        aside.mkdir()
        entries = write_shards(job, paths, aside)
        (aside / ".fingerprint").write_text(made_from + "\n")
        put_in_place(aside, paths, Manifest(paths.root, made_from, tuple(entries)))
    except OSError as error:
        raise DataError(
            f"cannot write the data set below {paths.root}: {error}. Make room or give another "
            "out_dir, and run again"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    num_bytes = sum(entry.num_bytes for entry in entries)
    samples = sum(entry.num_samples for entry in entries)
    return {"samples": samples, "shards": len(entries), "megabytes": round(num_bytes / 1e6)}


def data_fingerprint(job: DatasetJob, paths: DatasetPaths) -> str:
    """Of the queries and of every setting that decides about samples."""
    settings = dataclasses.asdict(job)
    for group, names in NOT_OF_THE_DATA.items():
        if names is None:
            del settings[group]
        else:
            settings[group] = {k: v for k, v in settings[group].items() if k not in names}
    queries = read_table(paths.table("queries"), QUERIES)["query"].to_pylist()
    return fingerprint(settings, hashlib.sha256("\n".join(queries).encode()).hexdigest())


def refuse_other_data_set(paths: DatasetPaths, made_from: str) -> None:
    found = None
    marker = paths.shards / ".fingerprint"
    try:
        if paths.manifest.exists():
            found = json.loads(paths.manifest.read_text())["config_fingerprint"]
        elif marker.exists():
            found = marker.read_text().strip()
        elif paths.shards.exists() and any(paths.shards.iterdir()):
            found = "unknown"
    except (ValueError, KeyError, TypeError):
        found = "unknown"
    if found not in (None, made_from):
        raise DataError(
            f"{paths.root} holds another data set (fingerprint {found}, this job has {made_from}): "
            f"give another out_dir, or delete {paths.manifest.name} and {paths.shards.name}/ there"
        )


def put_in_place(aside: Path, paths: DatasetPaths, manifest: Manifest) -> None:
    """Old manifest away, new shards in, new manifest: at no time does a manifest describe shards
    that are not there, wherever this is killed."""
    paths.manifest.unlink(missing_ok=True)
    old = aside.with_name(f"{aside.name}.old.tmp")
    if paths.shards.exists():
        os.rename(paths.shards, old)
    os.rename(aside, paths.shards)
    save_manifest(manifest, paths.manifest)
    shutil.rmtree(old, ignore_errors=True)


def write_shards(job: DatasetJob, paths: DatasetPaths, folder: Path) -> list[ShardEntry]:
    """Every curated sample, in order, into `folder`; and the fates of the stage."""
    entries: list[ShardEntry] = []
    total = _num_rows(paths.table("balanced"))
    fates = folder / "fates.parquet"
    images, writer = ImageReader(paths.crawl), ShardWriter(folder, 0)
    with StageProgress("pack", total) as progress, pq.ParquetWriter(fates, FATES) as fate_writer:
        for row in rows_in_order(job, paths, folder):
            if writer.num_samples == job.pack.samples_per_shard:
                entries.append(_finish(writer, fate_writer))
                writer = ShardWriter(folder, len(entries))
            image = images.read(row["shard"], row["offset"], row["size"])
            writer.add(row["uid"], image, row["caption"], sample_metadata(row))
            progress.advance()
        entries.append(_finish(writer, fate_writer))
    images.close()
    if sum(entry.num_samples for entry in entries) != total:
        raise DataError(
            f"some of {total} balanced pairs are not in {paths.table('kept')}: it was changed "
            "after the crawl. Run the crawl again"
        )
    sizes = {Path(entry.path).name: entry.num_samples for entry in entries}
    (folder / "sizes.json").write_text(json.dumps(sizes, indent=1) + "\n")
    paths.fates("pack").parent.mkdir(parents=True, exist_ok=True)
    os.replace(fates, paths.fates("pack"))
    return entries


def _finish(writer: ShardWriter, fates: pq.ParquetWriter) -> ShardEntry:
    entry = writer.close()
    packed = {"uid": writer.keys, "status": PACKED, "http_status": None, "detail": entry.path}
    columns = {
        name: value if isinstance(value, list) else [value] * entry.num_samples
        for name, value in packed.items()
    }
    fates.write_table(pa.table(columns, schema=FATES))
    return entry


def _num_rows(balanced: Path) -> int:
    if not balanced.exists():
        raise DataError(f"{balanced} does not exist: run the rebalance stage first")
    num_rows: int = pq.read_metadata(balanced).num_rows
    if num_rows == 0:
        raise DataError(f"{balanced} has no rows: there is nothing to pack")
    return num_rows


def rows_in_order(job: DatasetJob, paths: DatasetPaths, folder: Path) -> Iterator[dict]:
    """Rows of BALANCED with the metadata of the kept table, in the order of the global shuffle."""
    keyed = folder / "keyed.parquet"
    _write_order(paths.table("balanced"), keyed, job.pack.seed)
    with duckdb.connect() as database:
        database.execute(f"SET memory_limit = '{SORT_MEMORY}'")
        database.execute("SET temp_directory = $folder", {"folder": str(folder / "sort")})
        ordered = database.sql(
            """
            SELECT c.*, k.* EXCLUDE (uid, caption, width, height, keep_probability)
            FROM read_parquet($keyed) c JOIN read_parquet($kept) k USING (uid)
            ORDER BY c.order_key, c.uid
            """,
            params={"keyed": str(keyed), "kept": str(paths.table("kept"))},
        )
        for batch in ordered.to_arrow_reader(ROWS_PER_BATCH):
            yield from batch.to_pylist()
    keyed.unlink()
    shutil.rmtree(folder / "sort", ignore_errors=True)


def _write_order(balanced: Path, target: Path, seed: int) -> None:
    """The balanced table with `order_key` = xxh64(seed, "pack/" + uid). The prefix keeps the order
    independent of balancing, which keeps a pair by the size of another hash of its uid."""
    schema = BALANCED.append(pa.field("order_key", pa.uint64()))
    with pq.ParquetFile(balanced) as source, pq.ParquetWriter(target, schema) as writer:
        for batch in source.iter_batches(batch_size=65536, columns=BALANCED.names):
            uids = batch.column("uid").to_pylist()
            keys = [xxhash.xxh64_intdigest(f"pack/{uid}".encode(), seed % 2**64) for uid in uids]
            rows = pa.Table.from_batches([batch]).select(BALANCED.names).cast(BALANCED)
            writer.write_table(rows.append_column("order_key", pa.array(keys, pa.uint64())))


def sample_metadata(row: dict) -> dict:
    """The content of {uid}.json. keep_probability is a float32: seven digits say all of it."""
    chosen = {name: row[name] for name in METADATA}
    return {**chosen, "keep_probability": float(f"{row['keep_probability']:.7g}")}


class ImageReader:
    """Reads images by place from the tars of the crawl; the tars read last stay open."""

    def __init__(self, crawl: Path) -> None:
        self._crawl = crawl
        self._open: OrderedDict[str, int] = OrderedDict()

    def read(self, shard: str, offset: int, size: int) -> bytes:
        if shard not in self._open:
            try:
                self._open[shard] = os.open(self._crawl / shard, os.O_RDONLY)
            except FileNotFoundError:
                raise DataError(f"{self._crawl / shard} is gone: run the crawl again") from None
            if len(self._open) > OPEN_TARS:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(shard)
        content = os.pread(self._open[shard], size, offset)
        if len(content) != size or not content.startswith(b"\xff\xd8"):
            raise DataError(
                f"{self._crawl / shard} has no JPEG at {offset}, as it had after the crawl: it was "
                "changed since. Delete its part and run the crawl again"
            )
        return content

    def close(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)


if __name__ == "__main__":
    from data_tools.build import main

    sys.exit(main(sys.argv[1:], stage="pack"))
