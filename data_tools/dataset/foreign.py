"""Make index and manifest for a WebDataset that this project did not pack. Its tars are not
changed.

Members are grouped as webdataset does: the name up to the first dot after the last slash is the
key, the rest is the kind of member, and the members of a sample are consecutive. A sample needs an
image and a caption; every exception is named.
"""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.dataset.manifest import INDEX, Manifest, ShardEntry, file_sha256, save_manifest
from data_tools.dataset.shard_writer import INDEX_ROW_GROUP
from data_tools.ground.aside import sync, sync_folder
from data_tools.tables.schema import DataError
from data_tools.work.processes import in_processes
from data_tools.work.progress import StageProgress

KINDS = {"image": ("jpg", "jpeg", "png", "webp"), "text": ("txt",), "json": ("json",)}
_KIND_OF = {extension: kind for kind, extensions in KINDS.items() for extension in extensions}
_NAME = re.compile(r"((?:.*/|)[^./][^.]*)[.]([^/]*)")
_BLOCK = 1 << 20
# Begins config_fingerprint in place of the unknown configuration; existing manifests have it.
_FOREIGN = "adopted "


@dataclass
class Scan:
    """The content of a tar: rows of INDEX for the complete samples, and a line for each problem.
    `broken`: the tar itself is damaged."""

    num_bytes: int = 0
    sha256: str = ""
    broken: bool = False
    rows: list[dict] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class _HashedReader:
    """Hashes a file while it is read, so that members and checksum need one pass."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest, self.num_bytes = file, hashlib.sha256(), 0

    def read(self, size: int) -> bytes:
        block = self._file.read(size)
        self.digest.update(block)
        self.num_bytes += len(block)
        return block


def find_tars(folder: Path) -> list[Path]:
    """Return the tars below the folder, sorted by name. DataError if there is none."""
    tars = sorted(path for path in folder.rglob("*.tar") if path.is_file())
    if not tars:
        packed = next(iter(sorted(folder.rglob("*.tar.*"))), None)
        hint = (
            f"; {packed.name} is compressed, so that no sample can be read alone" if packed else ""
        )
        raise DataError(f"{folder} has no manifest.json and no .tar below it{hint}")
    return tars


def is_foreign(manifest: Manifest) -> bool:
    """Whether index_foreign made the manifest: then shards may hold members outside of samples."""
    return manifest.config_fingerprint.startswith(_FOREIGN)


def index_foreign(
    folder: Path, output: Path, processes: int, leave_out_bad: bool
) -> tuple[Manifest | None, list[str]]:
    """Write an index for each tar below `folder`, and manifest.json, into `output`; return the
    manifest and the problems of the tars.

    With any problem nothing is written and the manifest is None, unless `leave_out_bad`: then the
    manifest has the complete samples of the undamaged tars.
    """
    tars = find_tars(folder)
    entries, problems, indexes = [], [], []
    aside = output / f".adopt.{uuid.uuid4().hex[:8]}.tmp"
    aside.mkdir(parents=True)
    try:
        with StageProgress("index", total=len(tars)) as progress:
            for tar, scan in zip(tars, in_processes(scan_tar, ((t,) for t in tars), processes)):
                shown = os.path.relpath(tar, folder)
                problems += [f"{shown}: {problem}" for problem in scan.problems]
                if scan.rows and not scan.broken:
                    name = f"{shown.removesuffix('.tar')}.index.parquet"
                    indexes.append(name)
                    entries.append(_write_index(scan, tar, aside, output, name))
                progress.advance()
        if not entries or (problems and not leave_out_bad):
            return None, problems or [f"{folder}: no sample with an image and a caption"]
        sync(aside)
        for name in indexes:
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(aside / name, output / name)
            sync_folder((output / name).parent)
        digest = hashlib.sha256("\n".join(entry.sha256 for entry in entries).encode()).hexdigest()
        manifest = Manifest(output, f"{_FOREIGN}{digest[:16]}", tuple(entries))
        save_manifest(manifest, output / "manifest.json")
        return manifest, problems
    finally:
        _remove(aside)


def _write_index(scan: Scan, tar: Path, aside: Path, output: Path, name: str) -> ShardEntry:
    index = aside / name
    index.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(scan.rows, schema=INDEX)
    pq.write_table(table, index, row_group_size=INDEX_ROW_GROUP)
    inside = tar.resolve().is_relative_to(output.resolve())
    path = os.path.relpath(tar.resolve(), output.resolve()) if inside else str(tar.resolve())
    return ShardEntry(path, table.num_rows, scan.num_bytes, scan.sha256, name, file_sha256(index))


def _remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def scan_tar(path: Path) -> Scan:
    """Read a tar from its first byte to its last. Runs in a process of its own."""
    scan = Scan()
    with path.open("rb", buffering=0) as file:
        reader = _HashedReader(file)
        try:
            with tarfile.open(fileobj=reader, mode="r|", bufsize=_BLOCK) as archive:  # type: ignore
                _group(archive, scan)
                end = archive.offset
        except (tarfile.TarError, EOFError) as error:
            scan.broken = True
            scan.problems.append(f"is truncated or no tar: {error}")
            return scan
        while reader.read(_BLOCK):
            pass
        scan.num_bytes, scan.sha256 = reader.num_bytes, reader.digest.hexdigest()
        _check_end(file, end, scan)
    return scan


def _check_end(file: BinaryIO, end: int, scan: Scan) -> None:
    """Check that only zeros follow the last member, at least two blocks; tarfile accepts
    anything."""
    file.seek(end)
    num_zeros = 0
    while block := file.read(_BLOCK):
        if block.strip(b"\0"):
            scan.broken = True
            cut = scan.num_bytes - end < tarfile.BLOCKSIZE
            scan.problems.append(
                f"is truncated after byte {end}"
                if cut
                else f"is damaged: what follows byte {end} is no member"
            )
            return
        num_zeros += len(block)
    if num_zeros < tarfile.BLOCKSIZE:
        scan.broken = True
        scan.problems.append(f"is truncated: it has no end mark after byte {end}")


def _group(archive: tarfile.TarFile, scan: Scan) -> None:
    seen: set[str] = set()
    for key, members in _runs(archive, scan):
        if key in seen:
            scan.problems.append(f"the members of {key} do not lie together")
            continue
        seen.add(key)
        row = {"key": key, **{f"{kind}_offset": 0 for kind in KINDS}}
        row |= {f"{kind}_size": -1 for kind in KINDS}
        faults = [f"has no {kind}" for kind in ("image", "text") if kind not in members]
        for kind, (offset, size, count) in members.items():
            row |= {f"{kind}_offset": offset, f"{kind}_size": size}
            if count > 1:
                faults.append(f"has {count} members that are its {kind}")
            elif size == 0:
                faults.append(f"has an empty {kind}")
        if faults:
            scan.problems.append(f"{key} {', '.join(faults)}")
        else:
            scan.rows.append(row)


def _runs(
    archive: tarfile.TarFile, scan: Scan
) -> Iterator[tuple[str, dict[str, tuple[int, int, int]]]]:
    """Yield the key and {kind: (offset, size, count)} of each run of members with one key."""
    current = ""
    members: dict[str, tuple[int, int, int]] = {}
    for member in archive:
        archive.members = []  # type: ignore[attr-defined]  # a stream would keep them all
        if member.isdir():
            continue
        found = _NAME.fullmatch(member.name)
        if not found or not member.isreg() or member.issparse():
            scan.problems.append(f"member {member.name!r} is no part of a sample")
            continue
        if found[1] != current:
            if current:
                yield current, members
            current, members = found[1], {}
        kind = _KIND_OF.get(found[2].lower())
        if kind:
            earlier = members.get(kind, (0, 0, 0))
            members[kind] = (member.offset_data, member.size, earlier[2] + 1)
    if current:
        yield current, members
