"""Make index and manifest for a WebDataset that this project did not pack. Its tars are not
changed."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.dataset.find_tars import FoundTars, find_tars
from data_tools.dataset.manifest import (
    FOREIGN,
    INDEX,
    LeftOut,
    LeftOutTar,
    Manifest,
    ShardEntry,
    file_sha256,
    save_manifest,
)
from data_tools.dataset.samples import KIND_OF, Fault
from data_tools.dataset.shard_writer import INDEX_ROW_GROUP
from data_tools.dataset.tar_scan import Scan, scan_tar, split_name
from data_tools.ground.aside import sync, sync_folder
from data_tools.tables.schema import DataError
from data_tools.work.processes import in_processes
from data_tools.work.progress import StageProgress

_SHOWN_KINDS = 5


@dataclass
class Indexed:
    """`manifest` is None where nothing was written. `faults`: what is wrong with samples and tars,
    `notes`: what was passed over, each a line; `problems`: what the check of the new manifest
    found."""

    manifest: Manifest | None = None
    faults: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    num_usable: int = 0
    """Samples that could be used."""

    def add(self, fault: Fault, tar: str = "") -> None:
        self.faults.append(f"{tar}: {fault}" if tar else str(fault))
        self.reasons[fault.kind] += 1


def index_foreign(
    folder: Path,
    output: Path,
    processes: int,
    *,
    leave_out_bad: bool,
    decode: bool,
    check: Callable[[Manifest], list[str]],
) -> Indexed:
    """Write an index for each tar below `folder`, and manifest.json, into `output`.

    With any fault, and with any problem that `check` finds in the manifest, nothing is written,
    unless `leave_out_bad`: then the manifest has the whole samples of the undamaged tars. `decode`:
    every image is decoded for it.
    """
    found = find_tars(folder)
    if not found.tars:
        hint = f"; {found.notes[0]}" if found.notes else ""
        hint += "".join(f"; {fault}" for fault in found.faults[:1])
        raise DataError(f"{folder} has no manifest.json and no .tar below it{hint}")
    aside = output / f".adopt.{uuid.uuid4().hex[:8]}.tmp"
    aside.mkdir(parents=True)
    try:
        making = _Making(folder, output, aside, found)
        making.scan(processes, decode)
        indexed = making.indexed
        indexed.num_usable = sum(entry.num_samples for entry in making.entries)
        if making.entries and (leave_out_bad or not indexed.faults):
            making.commit(check)
        elif not indexed.faults:
            indexed.faults = [f"{folder}: no sample with an image and a caption"]
        return indexed
    finally:
        shutil.rmtree(aside)


class _Making:
    """A manifest and its indexes while they are made in the folder `aside`."""

    def __init__(self, folder: Path, output: Path, aside: Path, found: FoundTars) -> None:
        self._folder, self._output, self._aside, self._found = folder, output, aside, found
        self.indexed = Indexed(notes=list(found.notes))
        self.entries: list[ShardEntry] = []
        self._left_out: list[LeftOutTar] = []
        for fault in found.faults:
            self.indexed.add(fault)
        for path in found.again:
            self._leave_out(path, path.stat().st_size, "a tar of the manifest under another name")

    def scan(self, processes: int, decode: bool) -> None:
        tars = self._found.tars
        names: dict[str, str] = {}
        units = ((tar, decode) for tar in tars)
        with StageProgress("index", total=len(tars)) as progress:
            for tar, scan in zip(tars, in_processes(scan_tar, units, processes)):
                name = os.path.relpath(tar, self._folder)
                for fault in scan.faults:
                    self.indexed.add(fault, name)
                self.indexed.notes += ignored_notes(name, scan.ignored)
                if scan.broken:
                    self._leave_out(tar, tar.stat().st_size, scan.faults[-1].kind)
                elif not scan.rows:
                    self._leave_out(tar, scan.num_bytes, "no usable sample")
                    self.indexed.notes.append(f"{name} holds no usable sample")
                elif scan.sha256 in names:
                    self._leave_out(tar, scan.num_bytes, "a copy of a tar of the manifest")
                    earlier = names[scan.sha256]
                    self.indexed.notes.append(f"{name} is a copy of {earlier}: taken once")
                else:
                    names[scan.sha256] = name
                    self._add(scan, tar, name)
                progress.advance()

    def commit(self, check: Callable[[Manifest], list[str]]) -> None:
        """Check the manifest while its indexes are still aside; move them if it holds."""
        beside = [
            entry._replace(index_path=f"{self._aside.name}/{entry.index_path}")
            for entry in self.entries
        ]
        self.indexed.problems = check(Manifest(self._output, FOREIGN, tuple(beside)))
        if self.indexed.problems:
            return
        sync(self._aside)
        for entry in self.entries:
            target = self._output / entry.index_path
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self._aside / entry.index_path, target)
            sync_folder(target.parent)
        digest = hashlib.sha256("\n".join(e.sha256 for e in self.entries).encode()).hexdigest()
        left_out = LeftOut(tuple(self._left_out), tuple(self.indexed.reasons.most_common()))
        manifest = Manifest(
            self._output, f"{FOREIGN}{digest[:16]}", tuple(self.entries), left_out=left_out
        )
        save_manifest(manifest, self._output / "manifest.json")
        self.indexed.manifest = manifest

    def _add(self, scan: Scan, tar: Path, name: str) -> None:
        index = f"{name.removesuffix('.tar')}.index.parquet"
        # Not through a link into a folder of somebody else, who may have an index there too.
        beside = (self._output / index).parent.resolve()
        if index.startswith("..") or not beside.is_relative_to(self._output.resolve()):
            index = f"indexes/{index.replace('../', '')}"
        path = self._aside / index
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pylist(scan.rows, schema=INDEX)
        pq.write_table(table, path, row_group_size=INDEX_ROW_GROUP)
        self.entries.append(
            ShardEntry(
                path=self._path(tar),
                num_samples=table.num_rows,
                num_bytes=scan.num_bytes,
                sha256=scan.sha256,
                index_path=index,
                index_sha256=file_sha256(path),
            )
        )

    def _path(self, tar: Path) -> str:
        """The tar's path in the manifest: relative below its folder, else absolute."""
        for path, root in (
            (Path(os.path.abspath(tar)), Path(os.path.abspath(self._output))),
            (tar.resolve(), self._output.resolve()),
        ):
            if path.is_relative_to(root):
                return os.path.relpath(path, root)
        return str(tar.resolve())

    def _leave_out(self, tar: Path, num_bytes: int, reason: str) -> None:
        self._left_out.append(LeftOutTar(self._path(tar), num_bytes, reason))


def ignored_kinds(names: Iterable[str], keys: Collection[str]) -> Counter[str]:
    """Count the kinds of members, other than image, text and json, of the samples `keys`."""
    kinds: Counter[str] = Counter()
    for name in names:
        found = split_name(name)
        if found and found[0] in keys and found[1] not in KIND_OF:
            kinds[found[1]] += 1
    return kinds


def ignored_notes(tar: str, ignored: Counter[str]) -> list[str]:
    """Say which members of samples are neither image nor text nor json, if there are any."""
    if not ignored:
        return []
    shown = [
        kind if count == 1 else f"{kind} ({count:,})"
        for kind, count in ignored.most_common(_SHOWN_KINDS)
    ]
    more = f", ... ({len(ignored):,} kinds)" if len(ignored) > _SHOWN_KINDS else ""
    dots = ""
    if any(kind.rpartition(".")[2] in KIND_OF for kind in ignored if "." in kind):
        dots = "; a key ends at its first dot, as in webdataset: rename the members to use them"
    total = ignored.total()
    members = "member" if total == 1 else "members"
    return [f"{tar}: {total:,} {members} ignored: {', '.join(shown)}{more}{dots}"]


def late_tars(manifest: Manifest, folder: Path | None) -> list[str]:
    """Return a line for each tar that a foreign manifest neither has nor left out.

    Args:
        folder: where its tars lie; None looks where the manifest's are.
    """
    found = find_tars(folder) if folder else _tars_of(manifest)
    root = folder or manifest.root
    known = {manifest.shard_path(shard).resolve() for shard in manifest.shards}
    left_out = {(manifest.root / tar.path).resolve(): tar for tar in manifest.left_out.tars}
    lines = []
    for path in sorted(found.tars + found.again):
        known_tar = left_out.get(path.resolve())
        if path.resolve() in known or known_tar and known_tar.num_bytes == path.stat().st_size:
            continue
        when = "has changed since it was left out" if known_tar else "came later, or was left out"
        lines.append(f"{os.path.relpath(path, root)} is not in the manifest: it {when}")
    lines += [str(fault) for fault in found.faults if fault.kind not in _kinds(manifest)]
    return lines


def _tars_of(manifest: Manifest) -> FoundTars:
    """The tars where the manifest's lie: below its folder, or beside those that lie elsewhere."""
    folders = {manifest.shard_path(shard).parent for shard in manifest.shards}
    if any(not os.path.isabs(shard.path) for shard in manifest.shards):
        return find_tars(manifest.root)
    return FoundTars([tar for folder in sorted(folders) for tar in sorted(folder.glob("*.tar"))])


def _kinds(manifest: Manifest) -> set[str]:
    return {reason for reason, _ in manifest.left_out.samples}
