"""Reads the tar shards of an evaluation set, and refuses any that is not whole."""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.shards.files import FilePool

_IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
# WebDataset's rule: the key ends at the first dot of the file's name.
_MEMBER_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")


class EvalSetError(ValueError):
    """The set is not what its files say, so a score on it would be wrong; names file and fix."""


@dataclass(frozen=True, slots=True)
class Member:
    """Where a member's data lies in a tar; offset and size in bytes."""

    path: str
    offset: int
    size: int

    def read(self, files: FilePool) -> bytes:
        with files.open(self.path) as descriptor:
            data = os.pread(descriptor, self.size, self.offset)
        if len(data) < self.size:
            raise EvalSetError(f"{self.path} ends within a member: fetch the set again")
        return data


@dataclass(frozen=True, slots=True)
class EvalSample:
    key: str
    image: Member
    target: int | list[str]
    """The label, or the captions of a retrieval set."""


def list_shards(folder: Path) -> list[Path]:
    """0.tar to n-1.tar of `folder`, n as nshards.txt says. EvalSetError if other tars are there."""
    count_file = folder / "nshards.txt"
    if not count_file.is_file():
        raise EvalSetError(f"{count_file} is missing: without it a shard could be missing unseen")
    text = count_file.read_text().strip()
    if not text.isdecimal() or int(text) < 1:
        raise EvalSetError(f"{count_file} holds {text!r}, not a number of shards")
    expected = [folder / f"{number}.tar" for number in range(int(text))]
    found = set(folder.glob("*.tar"))
    if found != set(expected):
        missing = sorted(path.name for path in set(expected) - found)
        extra = sorted(path.name for path in found - set(expected))
        raise EvalSetError(
            f"{count_file} says {text} shards; missing {missing[:5]}, unexpected {extra[:5]}: "
            f"fetch the set again"
        )
    return expected


def read_shard(path: Path, target_suffix: str, files: FilePool) -> list[EvalSample]:
    """Keys, places of the images, and targets ("cls": labels, "txt": captions), in the tar's order.

    Raises EvalSetError for a tar that is cut short, a sample without image or target, a key that
    occurs twice, a label that is no number, or an empty caption file.
    """
    images: dict[str, Member] = {}
    targets: dict[str, Member] = {}
    for name, member in _members(path):
        match = _MEMBER_NAME.fullmatch(name)
        if match is None:
            continue
        key, suffix = match[1], match[2].lower()
        kept = images if suffix in _IMAGE_SUFFIXES else targets if suffix == target_suffix else None
        if kept is None:
            continue
        if key in kept:
            raise EvalSetError(f"{path}: {key} has two members like {name}: fetch the set again")
        kept[key] = member
    if images.keys() != targets.keys():
        odd = sorted(images.keys() ^ targets.keys())
        raise EvalSetError(
            f"{path}: {len(odd)} samples lack image or .{target_suffix}, the first is {odd[0]}"
        )
    return [
        EvalSample(key, image, _target(key, targets[key], target_suffix, files))
        for key, image in images.items()
    ]


def _members(path: Path) -> Iterator[tuple[str, Member]]:
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                if info.isfile():
                    yield info.name, Member(str(path), info.offset_data, info.size)
            end = tar.offset
    except (tarfile.TarError, OSError) as error:
        raise EvalSetError(f"{path} cannot be read: {error}. Fetch the set again") from error
    # A tar that was cut between two members looks whole but for its end-of-archive block.
    with path.open("rb") as file:
        if os.pread(file.fileno(), tarfile.BLOCKSIZE, end) != bytes(tarfile.BLOCKSIZE):
            raise EvalSetError(
                f"{path} is cut short, its end block is missing: fetch the set again"
            )


def _target(key: str, member: Member, suffix: str, files: FilePool) -> int | list[str]:
    try:
        text = member.read(files).decode()
        if suffix == "cls":
            return int(text)
    except ValueError as error:
        raise EvalSetError(f"{member.path}: {key}.{suffix} is not valid: {error}") from error
    # Only "\n" parts captions: str.splitlines would also cut one at U+0085 or U+2028 inside it.
    captions = [line.strip() for line in text.split("\n") if line.strip()]
    if not captions:
        raise EvalSetError(f"{member.path}: {key}.{suffix} holds no caption")
    return captions
