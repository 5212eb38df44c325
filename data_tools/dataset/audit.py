"""Checks a data set against its manifest: every checksum, count and offset, and some samples are
decoded. The command is data_tools/audit.py."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.dataset.foreign import KINDS, index_foreign, is_foreign
from data_tools.dataset.manifest import (
    INDEX,
    Manifest,
    ShardEntry,
    file_sha256,
    load_manifest,
)
from data_tools.work.processes import in_processes
from data_tools.work.progress import StageProgress


def audit(
    manifest: Manifest, num_decoded: int, processes: int = 1, checksums: bool = True
) -> list[str]:
    """Return a line for each problem, with the name of the file; an empty list if there is none.

    `num_decoded` samples, spread evenly over the data set, are read by the index and decoded.
    `checksums=False` skips the checksums, where they have just been computed.
    """
    problems = list(_folder_problems(manifest))
    every = max(1, manifest.num_samples // max(num_decoded, 1))

    def units() -> Iterator[tuple[Manifest, ShardEntry, range, bool]]:
        first = 0
        alone = Manifest(manifest.root, manifest.config_fingerprint, ())
        for shard in manifest.shards:
            wanted = range(-first % every, shard.num_samples, every) if num_decoded else range(0)
            yield alone, shard, wanted, checksums
            first += shard.num_samples

    with StageProgress("audit", total=len(manifest.shards)) as progress:
        for shard_problems in in_processes(check_shard, units(), processes):
            problems += shard_problems
            progress.advance()
    return problems


def check_shard(manifest: Manifest, shard: ShardEntry, wanted: range, checksums: bool) -> list[str]:
    """Return the problems of one shard; the samples at the positions `wanted` are decoded."""
    try:
        problems = list(_checksum_problems(manifest, shard)) if checksums else []
        problems += _shard_problems(manifest, shard)
        problems += _sample_problems(manifest, shard, wanted)
    except (OSError, pa.ArrowException, tarfile.TarError) as error:
        problems = [f"{shard.path} can't be read: {error}"]
    return problems


def _folder_problems(manifest: Manifest) -> Iterator[str]:
    """Check what readers without a manifest rely on: sizes.json, and the tars in the folder. Not
    for foreign shards, beside which tars may lie that were left out."""
    if is_foreign(manifest):
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
                f"manifest {wanted[:12]}...: one of them was changed. Pack again or restore it"
            )


def _shard_problems(manifest: Manifest, shard: ShardEntry) -> Iterator[str]:
    """Compare the index with the manifest, and the members of the tar with the index."""
    schema = pq.read_schema(manifest.index_path(shard))
    if not set(INDEX.names) <= set(schema.names):
        yield f"{shard.index_path} has the columns {schema.names}, not {INDEX.names}"
        return
    index = pq.read_table(manifest.index_path(shard), columns=INDEX.names).to_pylist()
    if len(index) != shard.num_samples:
        yield f"{shard.index_path} has {len(index)} rows, the manifest {shard.num_samples}"
    if len({row["key"] for row in index}) != len(index):
        yield f"{shard.index_path} has a key twice"
    with tarfile.open(manifest.shard_path(shard), "r:") as archive:
        places = {_plain_name(m.name): (m.offset_data, m.size) for m in archive if m.isreg()}
    indexed = 0
    for row in index:
        for part, extensions in KINDS.items():
            place = (row[f"{part}_offset"], row[f"{part}_size"])
            if place[1] == -1:
                continue
            indexed += 1
            if place not in [places.get(f"{row['key']}.{extension}") for extension in extensions]:
                yield f"{shard.path}: the {part} of {row['key']} is not where the index has it"
    if indexed != len(places) and not is_foreign(manifest):
        yield f"{shard.path} has {len(places)} members, its index {indexed}"


def _plain_name(name: str) -> str:
    """Return the name with its extension in lower case, as in KINDS."""
    key, _, extension = name.rpartition(".")
    return f"{key}.{extension.lower()}"


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
            problem = _undecodable(parts)
            if problem:
                yield f"{shard.path}: {row['key']}: {problem}"


def _undecodable(parts: dict[str, bytes]) -> str:
    """Return what cannot be decoded of a sample, or ""."""
    image = np.frombuffer(parts.get("image", b""), np.uint8)
    if not len(image) or cv2.imdecode(image, cv2.IMREAD_COLOR) is None:
        return "the image does not decode"
    try:
        if not parts.get("text", b"").decode().strip():
            return "the caption is empty"
        if "json" in parts and not isinstance(json.loads(parts["json"]), dict):
            return "the json is no object"
    except ValueError as error:
        return f"the text does not decode: {error}"
    return ""


def open_data_set(
    target: Path, output: Path | None, processes: int, leave_out_bad: bool
) -> tuple[Manifest | None, list[str], bool]:
    """Open the data set at `target`, or make a manifest for the tars below it.

    Args:
        target: manifest.json, or a folder that holds it or tars.
        output: the folder for the manifest and the indexes that are made; None is `target`.

    Returns (manifest, what is wrong with the tars, whether the manifest was made here); the
    manifest is None where there are bad samples and they are not to be left out.
    """
    if target.is_dir() and (target / "manifest.json").is_file():
        target /= "manifest.json"
    if not target.is_dir():
        return load_manifest(target), [], False
    output = output or target
    if (output / "manifest.json").is_file():
        return load_manifest(output / "manifest.json"), [], False
    return *index_foreign(target, output, processes, leave_out_bad), True
