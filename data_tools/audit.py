"""Is a data set what its manifest says? Every checksum, every count, every offset, a sample
decoded.

    python -m data_tools.audit data/mine/manifest.json [--decode 256]

Exit code 0 when all of it holds, 1 otherwise, with a line for each thing that does not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.manifest import (
    INDEX,
    Manifest,
    ManifestError,
    ShardEntry,
    load_manifest,
    verify_checksums,
)
from data_tools.progress import StageProgress

EXTENSIONS = {"image": ("jpg", "jpeg", "png", "webp"), "text": ("txt",), "json": ("json",)}
DECODED_SAMPLES = 256


def audit(manifest: Manifest, num_decoded: int) -> list[str]:
    """Everything that is wrong, a line each, with the name of the file; empty when nothing is.

    `num_decoded` samples, spread evenly over the data set, are read by the index and decoded.
    """
    problems = []
    try:
        verify_checksums(manifest)
    except ManifestError as error:
        problems.append(str(error))
    every = max(1, manifest.num_samples // max(num_decoded, 1))
    first = 0
    with StageProgress("audit", total=len(manifest.shards)) as progress:
        for shard in manifest.shards:
            try:
                problems += _shard_problems(manifest, shard)
                if num_decoded:
                    wanted = range(-first % every, shard.num_samples, every)
                    problems += _sample_problems(manifest, shard, wanted)
            except (OSError, pa.ArrowException, tarfile.TarError) as error:
                problems.append(f"{shard.path} can't be read: {error}")
            first += shard.num_samples
            progress.advance()
    return problems


def _shard_problems(manifest: Manifest, shard: ShardEntry) -> Iterator[str]:
    """Index against manifest, and members of the tar against the index."""
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
        found = {member.name: (member.offset_data, member.size) for member in archive}
    indexed = 0
    for row in index:
        for part, extensions in EXTENSIONS.items():
            place = (row[f"{part}_offset"], row[f"{part}_size"])
            if place[1] == -1:
                continue
            indexed += 1
            if place not in [found.get(f"{row['key']}.{extension}") for extension in extensions]:
                yield f"{shard.path}: the {part} of {row['key']} is not where the index has it"
    if indexed != len(found):
        yield f"{shard.path} has {len(found)} members, its index {indexed}"


def _sample_problems(manifest: Manifest, shard: ShardEntry, wanted: range) -> Iterator[str]:
    rows = pq.read_table(manifest.index_path(shard)).take(list(wanted))
    with manifest.shard_path(shard).open("rb") as file:
        for row in rows.to_pylist():
            parts = {
                part: os.pread(file.fileno(), max(row[f"{part}_size"], 0), row[f"{part}_offset"])
                for part in EXTENSIONS
                if row[f"{part}_size"] >= 0
            }
            problem = _undecodable(parts)
            if problem:
                yield f"{shard.path}: {row['key']}: {problem}"


def _undecodable(parts: dict[str, bytes]) -> str:
    """What can't be decoded of a sample, or ""."""
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


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data_tools.audit", description="Check a data set against its manifest."
    )
    parser.add_argument("manifest", type=Path, help="manifest.json of the data set")
    parser.add_argument(
        "--decode", type=int, default=DECODED_SAMPLES, help="samples to decode (default 256)"
    )
    options = parser.parse_args(arguments)
    try:
        manifest = load_manifest(options.manifest)
    except ManifestError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    problems = audit(manifest, options.decode)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        return 1
    print(
        f"{options.manifest}: {manifest.num_samples:,} samples in {len(manifest.shards):,} shards, "
        f"{manifest.num_bytes:,} bytes: checksums, counts and offsets hold"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
