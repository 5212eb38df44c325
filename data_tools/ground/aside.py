"""Files and folders are written aside and renamed: a final name has the whole content or none.

Each is synced to the disk before it is renamed, and the folder that holds it afterwards: without,
a machine that loses its power keeps the name and forgets the bytes.
"""

from __future__ import annotations

import errno
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a name beside `path`, in a folder that is made where it is missing, for the caller to
    write a file or to fill a new folder at; afterwards it takes the name `path`.

    A file takes the place of one that is there; a folder only of an empty one (OSError). When the
    caller raises, what was written aside is removed and `path` stays as it was. A process that is
    killed leaves its `.NAME.XXXXXXXX.tmp`; `remove_leftovers` knows them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield aside
        sync(aside)
        os.replace(aside, path)
        sync_folder(path.parent)
    finally:
        _remove(aside)


def remove_leftovers(path: Path) -> None:
    """Remove what killed writers of `path` left beside it. Only where no other process may be
    writing `path` now."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}.tmp"):
        _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_text_aside(path: Path, text: str) -> None:
    """Write a whole text file, as UTF-8."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_bytes_aside(path: Path, content: bytes) -> None:
    """Write a whole file."""
    with written_aside(path) as aside:
        aside.write_bytes(content)


def sync(path: Path) -> None:
    """Force a file, or all files and folders below a folder, to the disk."""
    if not path.is_dir():
        _fsync(path)
        return
    for folder, _, names in os.walk(path):
        for name in names:
            _fsync(Path(folder) / name)
        sync_folder(Path(folder))


def sync_folder(path: Path) -> None:
    """Force the names in a folder to the disk, where the file system can."""
    try:
        _fsync(path)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # network file systems refuse it so
            raise


def _fsync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
