"""Checks a data set against its manifest: every checksum, count and offset, and some samples are
decoded. The command is data_tools/audit.py."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.dataset.foreign import (
    Indexed,
    ignored_kinds,
    ignored_notes,
    index_foreign,
    late_tars,
)
from data_tools.dataset.manifest import (
    INDEX,
    Manifest,
    ShardEntry,
    file_sha256,
    load_manifest,
    remedy,
)
from data_tools.dataset.samples import KINDS, content_fault
from data_tools.dataset.tar_scan import CheckedInfo
from data_tools.tables.schema import DataError
from data_tools.work.processes import in_processes
from data_tools.work.progress import StageProgress


class Audited(NamedTuple):
    """`problems`: what is wrong, `notes`: what was passed over; a line each, with the name of the
    file. `num_bad_samples`: how many of the problems are samples that cannot be used."""

    problems: list[str]
    notes: list[str]
    num_bad_samples: int


def audit(
    manifest: Manifest,
    num_decoded: int,
    processes: int = 1,
    *,
    checksums: bool = True,
    folder: Path | None = None,
) -> Audited:
    """Compare a data set with its manifest.

    Args:
        num_decoded: samples, spread evenly over the data set, that are read by the index and
            decoded.
        checksums: False skips them, where they have just been computed.
        folder: where the tars of a foreign data set lie, if it is not where the manifest's do.
    """
    problems = list(_folder_problems(manifest))
    notes: list[str] = []
    num_bad_samples = 0
    every = max(1, manifest.num_samples // max(num_decoded, 1))

    def units() -> Iterator[tuple[Manifest, ShardEntry, range, bool]]:
        first = 0
        alone = Manifest(manifest.root, manifest.config_fingerprint, ())
        for shard in manifest.shards:
            wanted = range(-first % every, shard.num_samples, every) if num_decoded else range(0)
            yield alone, shard, wanted, checksums
            first += shard.num_samples

    with StageProgress("audit", total=len(manifest.shards)) as progress:
        for checked in in_processes(check_shard, units(), processes):
            problems += checked.problems
            notes += checked.notes
            num_bad_samples += checked.num_bad_samples
            progress.advance()
    if manifest.is_foreign and checksums:
        problems += late_tars(manifest, folder)
        if problems:
            problems.append(remedy(manifest, bad_samples=num_bad_samples > 0))
    return Audited(problems, notes, num_bad_samples)


def check_shard(manifest: Manifest, shard: ShardEntry, wanted: range, checksums: bool) -> Audited:
    """Check one shard; the samples at the positions `wanted` are decoded."""
    problems: list[str] = []
    notes: list[str] = []
    bad_samples: list[str] = []
    try:
        if checksums:
            problems += _checksum_problems(manifest, shard)
        problems += _shard_problems(manifest, shard, notes)
        bad_samples += _sample_problems(manifest, shard, wanted)
    except (OSError, pa.ArrowException, tarfile.TarError) as error:
        return Audited([f"{shard.path} can't be read: {error}"], [], 0)
    return Audited(problems + bad_samples, notes, len(bad_samples))


def _folder_problems(manifest: Manifest) -> Iterator[str]:
    """Check what readers without a manifest rely on: sizes.json, and the tars in the folder. Not
    for foreign shards, beside which tars may lie that were left out."""
    if manifest.is_foreign:
        return
    folders = {manifest.shard_path(shard).parent for shard in manifest.shards}
    sizes = {manifest.shard_path(shard).name: shard.num_samples for shard in manifest.shards}
    listed = {manifest.shard_path(shard).resolve() for shard in manifest.shards}
    for folder in sorted(folders):
        for tar in sorted(folder.glob("*.tar")):
            if tar.resolve() not in listed:
                yield f"{tar} lies among the shards and is not in the manifest"
        if len(folders) == 1 and (folder / "sizes.json").is_file():
            try:
                stated = json.loads((folder / "sizes.json").read_text())
            except ValueError as error:
                stated = error
            if stated != sizes:
                yield f"{folder / 'sizes.json'} does not hold the manifest's numbers of samples"


def _checksum_problems(manifest: Manifest, shard: ShardEntry) -> Iterator[str]:
    for path, wanted in ((shard.path, shard.sha256), (shard.index_path, shard.index_sha256)):
        actual = file_sha256(manifest.root / path)
        if actual != wanted:
            yield (
                f"checksums differ from the manifest: {path} has sha256 {actual[:12]}..., the "
                f"manifest {wanted[:12]}...: one of them was changed"
                + ("" if manifest.is_foreign else ". Pack again or restore it")
            )


def _shard_problems(manifest: Manifest, shard: ShardEntry, notes: list[str]) -> Iterator[str]:
    """Compare the index with the manifest, and the members of the tar with the index; `notes` grows
    by what a foreign tar holds beside its samples."""
    schema = pq.read_schema(manifest.index_path(shard))
    if not set(INDEX.names) <= set(schema.names):
        yield f"{shard.index_path} has the columns {schema.names}, not {INDEX.names}"
        return
    index = pq.read_table(manifest.index_path(shard), columns=INDEX.names).to_pylist()
    if len(index) != shard.num_samples:
        yield f"{shard.index_path} has {len(index)} rows, the manifest {shard.num_samples}"
    if len({row["key"] for row in index}) != len(index):
        yield f"{shard.index_path} has a key twice"
    places = _places(manifest.shard_path(shard))
    indexed = 0
    for row in index:
        for part, extensions in KINDS.items():
            place = (row[f"{part}_offset"], row[f"{part}_size"])
            if place[1] == -1:
                continue
            indexed += 1
            names = (f"{row['key']}.{extension}" for extension in extensions)
            if not any(place in places.get(name, ()) for name in names):
                yield f"{shard.path}: the {part} of {row['key']} is not where the index has it"
    if manifest.is_foreign:
        kinds = ignored_kinds(places, {row["key"] for row in index})
        notes += ignored_notes(shard.path, kinds)
        return
    num_members = sum(map(len, places.values()))
    if indexed != num_members:
        yield f"{shard.path} has {num_members} members, its index {indexed}"


def _places(tar: Path) -> dict[str, list[tuple[int, int]]]:
    """(offset, size) of the members by name, their extensions in lower case as in KINDS. A foreign
    tar may have a name twice."""
    places: dict[str, list[tuple[int, int]]] = {}
    with tarfile.open(tar, "r:", tarinfo=CheckedInfo) as archive:
        for member in archive:
            if member.isreg():
                key, _, extension = member.name.rpartition(".")
                name = f"{key}.{extension.lower()}"
                places.setdefault(name, []).append((member.offset_data, member.size))
    return places


def _sample_problems(manifest: Manifest, shard: ShardEntry, wanted: range) -> Iterator[str]:
    if not wanted:
        return
    index = pq.read_table(manifest.index_path(shard))
    rows = index.take([number for number in wanted if number < index.num_rows])
    with manifest.shard_path(shard).open("rb") as file:
        for row in rows.to_pylist():
            parts = {
                part: os.pread(file.fileno(), max(row[f"{part}_size"], 0), row[f"{part}_offset"])
                for part in KINDS
                if row[f"{part}_size"] >= 0
            }
            problem = content_fault(parts, decode=True)
            if problem:
                yield f"{shard.path}: {row['key']}: {problem}"


@dataclass(frozen=True)
class Opened:
    """A data set to audit. `manifest` is None where none could be made; `indexed`: what making it
    found, None where it was there."""

    manifest: Manifest | None
    indexed: Indexed | None
    folder: Path | None
    """Where its tars lie, if that was said."""


def open_data_set(
    target: Path,
    output: Path | None,
    processes: int,
    *,
    leave_out_bad: bool,
    num_decoded: int,
    anew: bool = False,
) -> Opened:
    """Open the data set at `target`, or make a manifest for the tars below it.

    Args:
        target: manifest.json, or a folder that holds it or tars.
        output: the folder for the manifest and the indexes that are made; None is `target`.
        leave_out_bad: where there are bad samples, make a manifest without them, for which every
            image is decoded, unless `num_decoded` is 0.
        num_decoded: as `audit` takes it.
        anew: make a manifest where one is already, which it replaces when it is whole.
    """
    if anew:
        target = target if target.is_dir() else target.parent
    elif target.is_dir() and (target / "manifest.json").is_file():
        target /= "manifest.json"
    if not target.is_dir():
        if target.suffix == ".tar" and target.is_file():
            raise DataError(f"{target} is a tar: give the folder that holds it")
        return Opened(load_manifest(target), None, None)
    output = output or target
    if not anew and (output / "manifest.json").is_file():
        return Opened(load_manifest(output / "manifest.json"), None, target)

    def check(manifest: Manifest) -> list[str]:
        return audit(manifest, num_decoded, processes, checksums=False).problems

    indexed = index_foreign(
        target,
        output,
        processes,
        leave_out_bad=leave_out_bad,
        decode=leave_out_bad and num_decoded > 0,
        check=check,
    )
    return Opened(indexed.manifest, indexed, target)
