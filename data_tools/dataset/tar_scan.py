"""Reads a tar of WebDataset samples from its first byte to its last: where the members of each
sample lie, and all that is wrong.

Members are grouped as webdataset does: the name up to the first dot after the last slash is the
key, the rest is the kind of member, and the members of a sample are consecutive. A sample needs an
image and a caption.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from data_tools.dataset.pictures import what_it_is
from data_tools.dataset.samples import KIND_OF, KINDS, Fault, content_fault

_NAME = re.compile(r"((?:.*/|)[^./][^.]*)[.]([^/]*)", re.DOTALL)
_BLOCK = 1 << 20
# A header that holds one long name; tarfile would read any number of bytes of it into memory.
_MAX_NAME_BYTES = 1 << 20
_NAME_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
# A member that is larger is not read into memory.
_MAX_MEMBER_BYTES = 256 << 20
_MAX_KINDS = 1000
_OTHER_TYPES = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a named pipe",
}


class CheckedInfo(tarfile.TarInfo):
    """A member; tarfile.ReadError for a header that says that a name is megabytes long."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _NAME_HEADERS and self.size > _MAX_NAME_BYTES:
            raise tarfile.ReadError(f"the header at byte {self.offset} has a name of {self.size} B")
        return super()._proc_member(archive)  # type: ignore[misc]


@dataclass
class Scan:
    """The content of a tar: rows of INDEX for the samples that can be used, and what is wrong with
    the others. `broken`: the tar itself is damaged. `ignored`: members of samples that are neither
    image nor text nor json, counted by kind."""

    num_bytes: int = 0
    sha256: str = ""
    broken: bool = False
    rows: list[dict] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)

    def tar_fault(self, reason: str) -> None:
        self.broken = True
        self.faults.append(Fault("", reason))


@dataclass
class _Member:
    offset: int
    size: int
    content: bytes | None
    count: int = 1


class _HashedReader:
    """Hashes a file while it is read, so that members and checksum need one pass."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest, self.num_bytes = file, hashlib.sha256(), 0

    def read(self, size: int) -> bytes:
        block = self._file.read(size)
        self.digest.update(block)
        self.num_bytes += len(block)
        return block


def split_name(name: str) -> tuple[str, str] | None:
    """(key, kind in lower case) of a member; None for one that belongs to no sample."""
    found = _NAME.fullmatch(name)
    return (found[1], found[2].lower()) if found else None


def scan_tar(path: Path, decode: bool) -> Scan:
    """Read a tar; `decode`: every image is decoded, else only its header is looked at. Runs in a
    process of its own."""
    scan = Scan()
    try:
        with path.open("rb", buffering=0) as file:
            _scan(file, decode, scan)
    except OSError as error:
        scan.tar_fault(f"cannot be read: {error.strerror or error} (errno {error.errno})")
    return scan


def _scan(file: BinaryIO, decode: bool, scan: Scan) -> None:
    head = file.read(64)
    if what := what_it_is(head) if head.strip(b"\0") else "" if head else "empty":
        scan.tar_fault(f"is no tar: it is {what}")
        return
    file.seek(0)
    reader = _HashedReader(file)
    stream: Any = reader  # tarfile asks for more than it uses
    try:
        with tarfile.open(
            fileobj=stream, mode="r|", bufsize=_BLOCK, tarinfo=CheckedInfo
        ) as archive:
            _group(archive, decode, scan)
            end = archive.offset
    except (tarfile.TarError, EOFError) as error:
        scan.tar_fault(f"is truncated or no tar: {error}")
        return
    while reader.read(_BLOCK):
        pass
    scan.num_bytes, scan.sha256 = reader.num_bytes, reader.digest.hexdigest()
    _check_end(file, end, scan)


def _check_end(file: BinaryIO, end: int, scan: Scan) -> None:
    """Check that only zeros follow the last member, at least two blocks; tarfile accepts
    anything."""
    file.seek(end)
    num_zeros = 0
    while block := file.read(_BLOCK):
        rest = block.lstrip(b"\0")
        if rest:
            place = end + num_zeros + len(block) - len(rest)
            if scan.num_bytes - end < tarfile.BLOCKSIZE:
                scan.tar_fault(f"is truncated: after byte {end}")
            elif place - end >= tarfile.BLOCKSIZE and _is_header(file, place):
                scan.tar_fault(
                    f"is concatenated: a second tar begins at byte {place}, and webdataset reads "
                    f"the first alone. Split it there"
                )
            else:
                scan.tar_fault(f"is damaged: what follows byte {end} is no member")
            return
        num_zeros += len(block)
    if num_zeros < tarfile.BLOCKSIZE:
        scan.tar_fault(f"is truncated: it has no end mark after byte {end}")


def _is_header(file: BinaryIO, offset: int) -> bool:
    file.seek(offset)
    try:
        tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return True


def _group(archive: tarfile.TarFile, decode: bool, scan: Scan) -> None:
    seen: set[str] = set()
    for key, members, others in _runs(archive, scan):
        for kind in others:
            scan.ignored[kind if len(scan.ignored) < _MAX_KINDS else "others"] += 1
        if key in seen:
            scan.faults.append(Fault(f"the members of {key}", "do not lie together"))
            continue
        seen.add(key)
        reason = _member_faults(key, members, others)
        if reason:
            scan.faults.append(Fault(key, reason))
            continue
        contents = {kind: member.content or b"" for kind, member in members.items()}
        reason = content_fault(contents, decode)
        if reason:
            scan.faults.append(Fault(f"{key}:", reason))
            continue
        row = {"key": key, **{f"{kind}_offset": 0 for kind in KINDS}}
        row |= {f"{kind}_size": -1 for kind in KINDS}
        for kind, member in members.items():
            row |= {f"{kind}_offset": member.offset, f"{kind}_size": member.size}
        scan.rows.append(row)


def _member_faults(key: str, members: dict[str, _Member], others: list[str]) -> str:
    faults = [f"has no {kind}" for kind in ("image", "text") if kind not in members]
    for kind, member in members.items():
        if member.count > 1:
            faults.append(f"has {member.count} members that are its {kind}")
        elif member.size == 0:
            faults.append(f"has an empty {kind}")
        elif member.content is None:
            faults.append(f"has a too large {kind}, of more than {_MAX_MEMBER_BYTES >> 20} MiB")
    if not _is_utf8(key):
        faults.append("has a name that is not UTF-8")
    dotted = [kind for kind in others if kind.rpartition(".")[2] in KIND_OF]
    if dotted and ("image" not in members or "text" not in members):
        more = ", ..." if len(dotted) > 4 else ""
        faults[-1] += (
            f": it has {', '.join(dotted[:4])}{more}, for a key ends at its first dot, as in "
            f"webdataset. Names need their only dot before {', '.join(KIND_OF)}"
        )
    return ", ".join(faults)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _runs(
    archive: tarfile.TarFile, scan: Scan
) -> Iterator[tuple[str, dict[str, _Member], list[str]]]:
    """Yield the key, the members by kind and the kinds of all other members of each run of members
    with one key."""
    current = ""
    members: dict[str, _Member] = {}
    others: list[str] = []
    for info in archive:
        archive.members = []  # type: ignore[attr-defined]  # a stream would keep all
        if info.isdir():
            continue
        found = split_name(info.name)
        if not found or not info.isreg() or info.issparse():
            scan.faults.append(Fault(f"member {info.name!r}", _no_part(info)))
            continue
        key, extension = found
        if key != current:
            if current:
                yield current, members, others
            current, members, others = key, {}, []
        kind = KIND_OF.get(extension)
        if kind is None:
            others.append(extension)
        elif kind in members:
            members[kind].count += 1
        else:
            members[kind] = _Member(info.offset_data, info.size, _content(archive, info))
    if current:
        yield current, members, others


def _content(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes | None:
    if info.size > _MAX_MEMBER_BYTES:
        return None
    file = archive.extractfile(info)
    return file.read() if file else None


def _no_part(info: tarfile.TarInfo) -> str:
    reason = "is no part of a sample"
    if info.islnk():
        return f"{reason}: a hard link to {info.linkname}, without bytes of its own"
    if info.issparse():
        return f"{reason}: a sparse file, whose bytes do not lie in one piece"
    if info.type in _OTHER_TYPES:
        return f"{reason}: {_OTHER_TYPES[info.type]}"
    if info.name.rpartition("/")[2].startswith("._"):
        return f"{reason}: an AppleDouble file of macOS"
    return reason
