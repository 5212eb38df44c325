"""Finds the tars below a folder, through links to folders and files."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data_tools.dataset.samples import Fault
from data_tools.ground.printable import printable

_Identity = tuple[int, int]
_COMPRESSED = (".tgz", ".tar.gz", ".tar.zst", ".tar.xz", ".tar.bz2", ".tar.lz4")


@dataclass
class FoundTars:
    """`tars` are sorted, each file once; `faults` name what could not be looked at, `notes` what
    was passed over. Names are relative to the folder. `again`: further names of files in `tars`."""

    tars: list[Path] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    again: list[Path] = field(default_factory=list)


def find_tars(folder: Path) -> FoundTars:
    """Return the tars below the folder. A folder or file that is reached twice counts under its
    first name, the names without links before the others; a link to a folder that holds this one
    is not followed."""
    walk = _Walk(folder)
    walk.run()
    walk.found.tars.sort()
    return walk.found


class _Walk:
    def __init__(self, folder: Path) -> None:
        self.found = FoundTars()
        self._root = folder
        self._above = {_identity(path) for path in folder.resolve().parents}
        self._folders: dict[_Identity, str] = {}
        self._files: dict[_Identity, str] = {}

    def run(self) -> None:
        # Links come after all that is here under its own name, so that this name is the one kept.
        links: deque[Path] = deque()
        waiting = [self._root]
        while waiting or links:
            path = waiting.pop() if waiting else links.popleft()
            try:
                status = os.stat(path)
            except OSError as error:
                self._fault(path, _why(path, error))
                continue
            if not stat.S_ISDIR(status.st_mode):
                self._file(path, status)
            elif self._is_new(path, (status.st_dev, status.st_ino)):
                for entry in self._entries(path):
                    if entry.is_symlink():
                        links.append(Path(entry.path))
                    elif entry.is_dir() or _is_like_a_tar(entry.name):
                        waiting.append(Path(entry.path))

    def _entries(self, folder: Path) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                yield from sorted(entries, key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            self._fault(folder, f"cannot be looked into: {error.strerror} (errno {error.errno})")

    def _is_new(self, folder: Path, identity: _Identity) -> bool:
        name = self._name(folder)
        if identity in self._above:
            self.found.notes.append(f"{name} is a link to a folder above: not followed")
        elif identity in self._folders:
            earlier = self._folders[identity]
            self.found.notes.append(f"{name} is the folder {earlier} again: taken once")
        else:
            self._folders[identity] = name
            return True
        return False

    def _file(self, path: Path, status: os.stat_result) -> None:
        name = self._name(path)
        if path.name.lower().endswith(_COMPRESSED):
            self.found.notes.append(f"{name} is compressed, so that no sample can be read alone")
        elif path.suffix != ".tar":
            if path.suffix.lower() == ".tar":
                self.found.notes.append(f"{name} is not read: its name does not end in .tar")
        elif not stat.S_ISREG(status.st_mode):
            self._fault(path, "is no regular file")
        elif not _has_utf8_name(path):
            self._fault(path, "has a name that is not UTF-8: rename it")
        else:
            identity = (status.st_dev, status.st_ino)
            earlier = self._files.setdefault(identity, name)
            if earlier is name:
                self.found.tars.append(path)
            else:
                self.found.again.append(path)
                self.found.notes.append(f"{name} is the file {earlier} again: taken once")

    def _fault(self, path: Path, reason: str) -> None:
        self.found.faults.append(Fault(self._name(path), reason))

    def _name(self, path: Path) -> str:
        return printable(os.path.relpath(path, self._root))


def _is_like_a_tar(name: str) -> bool:
    return name.lower().endswith((".tar", *_COMPRESSED))


def _identity(path: Path) -> _Identity:
    status = path.stat()
    return status.st_dev, status.st_ino


def _why(path: Path, error: OSError) -> str:
    if path.is_symlink():
        return f"is a broken link: {os.readlink(path)}: {error.strerror} (errno {error.errno})"
    return f"cannot be looked at: {error.strerror} (errno {error.errno})"


def _has_utf8_name(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True
