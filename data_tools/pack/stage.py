"""The flow of the pack stage: the order, shards in parallel, then all final names at once.

Unfinished work is kept in .shards.FINGERPRINT.tmp, where FINGERPRINT is that of settings and
tables. After a kill, the next run keeps the shards that are complete there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.config import DatasetJob, data_settings, fingerprint
from data_tools.dataset.manifest import Manifest, ShardEntry, file_sha256, save_manifest
from data_tools.ground.aside import sync, sync_folder, write_text_aside, written_aside
from data_tools.pack.order import shard_ranges, write_order
from data_tools.pack.shards import entry_path, finished_shard, write_shard
from data_tools.pack.upload import refuse_other_target, upload
from data_tools.tables.schema import FATES, PACKED, QUERIES, DataError, DatasetPaths, read_table
from data_tools.work.processes import in_processes
from data_tools.work.progress import StageProgress
from data_tools.work.tasks import ALL, Task


def run(job: DatasetJob, paths: DatasetPaths) -> dict[str, int]:
    """Write shards, indexes, sizes.json and the manifest, and copy them to pack.target_url.

    A data set that an earlier build packed here with other settings is moved to earlier/. A data
    set that no build packed here raises DataError before anything is written.
    """
    made_from = data_fingerprint(job, paths)
    refuse_other_data_set(paths, made_from)
    if job.pack.target_url:
        refuse_other_target(job.pack.target_url, made_from)
    work = work_folder(paths, made_from)
    for leftover in paths.root.glob(".shards.*.tmp"):
        if leftover != work:
            shutil.rmtree(leftover)
    entries = write_shards(job, paths, work, ALL)
    manifest = Manifest(paths.root, made_from, tuple(entries))
    try:
        _write_fates(entries, work, paths)
        _complete(work, entries, made_from)
        put_in_place(work, paths, manifest)
    except OSError as error:
        raise _no_room(paths, error) from error
    if job.pack.target_url:
        upload(manifest, paths.root, job.pack.target_url)
    num_bytes = sum(entry.num_bytes for entry in entries)
    samples = sum(entry.num_samples for entry in entries)
    return {"samples": samples, "shards": len(entries), "megabytes": round(num_bytes / 1e6)}


def run_share(job: DatasetJob, paths: DatasetPaths, task: Task) -> dict[str, int]:
    """Write one task's share of the shards. `run` writes what no task wrote, and renames all of
    it."""
    made_from = data_fingerprint(job, paths)
    refuse_other_data_set(paths, made_from)
    entries = write_shards(job, paths, work_folder(paths, made_from), task)
    return {"samples": sum(entry.num_samples for entry in entries), "shards": len(entries)}


def data_fingerprint(job: DatasetJob, paths: DatasetPaths) -> str:
    """Return the fingerprint of the queries and of every setting that can change the samples."""
    queries = read_table(paths.table("queries"), QUERIES)["query"].to_pylist()
    return fingerprint(data_settings(job), hashlib.sha256("\n".join(queries).encode()).hexdigest())


def refuse_other_data_set(paths: DatasetPaths, made_from: str) -> None:
    """DataError if shards or a manifest are here that no build of this folder packed."""
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
    if found not in (None, made_from, packed_before(paths)):
        raise DataError(
            f"{paths.root} holds another data set (fingerprint {found}, this job has {made_from}): "
            f"give another out_dir, or delete {paths.manifest.name} and {paths.shards.name}/ there"
        )


def packed_before(paths: DatasetPaths) -> str | None:
    """Return the fingerprint of the data set that a build put here last, or None."""
    record = paths.table("packed").with_suffix(".json")
    return json.loads(record.read_text())["config_fingerprint"] if record.exists() else None


def work_folder(paths: DatasetPaths, made_from: str) -> Path:
    """Return the folder of unfinished shards. Its name is a hash of everything that their bytes
    depend on; the crawl's tars are covered because the balanced table has sha256 and place of every
    image."""
    balanced = paths.table("balanced")
    if not balanced.exists():
        raise DataError(f"{balanced} does not exist: run the rebalance stage first")
    if pq.read_metadata(balanced).num_rows == 0:
        raise DataError(f"{balanced} has no rows: there is nothing to pack")
    tables = [file_sha256(paths.table(name)) for name in ("balanced", "kept")]
    return paths.root / f".shards.{fingerprint(made_from, *tables)}.tmp"


def write_shards(job: DatasetJob, paths: DatasetPaths, work: Path, task: Task) -> list[ShardEntry]:
    """Write those of the task's shards that are not complete yet, in several processes; return the
    entries of all, in the order of their numbers."""
    order = work / "order.parquet"
    try:
        work.mkdir(exist_ok=True)
        if not order.exists():
            write_order(job.pack, paths, order)
        ranges = list(enumerate(shard_ranges(job.pack, order)))
        share = task.share(ranges)
        entries = {number: finished_shard(work, number) for number, _ in share}

        def missing() -> Iterator[tuple[Path, Path, Path, int, int, int]]:
            for number, (start, stop) in share:
                if entries[number] is None:
                    yield order, paths.crawl, work, number, start, stop

        total = sum(stop - start for _, (start, stop) in share)
        with StageProgress("pack", total) as progress:
            progress.advance(sum(entry.num_samples for entry in entries.values() if entry))
            for entry in in_processes(write_shard, missing(), job.pack.processes):
                entries[int(Path(entry.path).stem)] = entry
                progress.advance(entry.num_samples)
    except (OSError, duckdb.IOException, duckdb.OutOfMemoryException) as error:
        raise _no_room(paths, error) from error
    return [entry for _, entry in sorted(entries.items()) if entry is not None]


def _no_room(paths: DatasetPaths, error: Exception) -> DataError:
    return DataError(
        f"cannot write the data set below {paths.root}: {error}. Make room or give another "
        "out_dir, and run again: shards that are finished are kept"
    )


def _write_fates(entries: list[ShardEntry], work: Path, paths: DatasetPaths) -> None:
    with written_aside(paths.fates("pack")) as aside, pq.ParquetWriter(aside, FATES) as writer:
        for entry in entries:
            keys = pq.read_table(work / Path(entry.index_path).name, columns=["key"])["key"]
            count = len(keys)
            columns = {
                "uid": keys,
                "status": [PACKED] * count,
                "http_status": pa.nulls(count, pa.int32()),
                "detail": [entry.path] * count,
            }
            writer.write_table(pa.table(columns, schema=FATES))


def _complete(work: Path, entries: list[ShardEntry], made_from: str) -> None:
    """Add sizes.json and the marker of the fingerprint, and remove everything that is not part of
    the finished folder."""
    sizes = {Path(entry.path).name: entry.num_samples for entry in entries}
    (work / "sizes.json").write_text(json.dumps(sizes, indent=1) + "\n")
    (work / ".fingerprint").write_text(made_from + "\n")
    wanted = {"sizes.json", ".fingerprint"}
    for entry in entries:
        wanted |= {Path(entry.path).name, Path(entry.index_path).name}
    for number in range(len(entries)):
        entry_path(work, number).unlink(missing_ok=True)
    for other in work.iterdir():
        if other.name not in wanted:
            shutil.rmtree(other) if other.is_dir() else other.unlink()


def put_in_place(work: Path, paths: DatasetPaths, manifest: Manifest) -> None:
    """Remove the old manifest, rename the new shards, write the new manifest: wherever this is
    killed, no manifest names shards that do not exist."""
    before, now = packed_before(paths), manifest.config_fingerprint
    old = work.with_name(f"{work.name}.old.tmp")
    if paths.shards.exists() and before not in (None, now):
        _move_to_earlier(paths, paths.root / "earlier" / str(before))
    elif paths.shards.exists():
        paths.manifest.unlink(missing_ok=True)
        os.rename(paths.shards, old)
    sync(work)  # a manifest must not outlive, in a power cut, the shards that it names
    os.rename(work, paths.shards)
    sync_folder(paths.root)
    record = paths.table("packed").with_suffix(".json")
    write_text_aside(record, json.dumps({"config_fingerprint": now}) + "\n")
    save_manifest(manifest, paths.manifest)
    shutil.rmtree(old, ignore_errors=True)


def _move_to_earlier(paths: DatasetPaths, place: Path) -> None:
    """Keep a data set of other settings: a training run may depend on it, and only the user may
    delete it. The manifest is moved first: without its shards beside it, readers refuse it."""
    place.mkdir(parents=True, exist_ok=True)
    if paths.manifest.exists():
        os.replace(paths.manifest, place / "manifest.json")
    shutil.rmtree(place / "shards", ignore_errors=True)  # same settings, so the same bytes
    os.rename(paths.shards, place / "shards")
    print(f"the data set of other settings is now {place / 'manifest.json'}", file=sys.stderr)
