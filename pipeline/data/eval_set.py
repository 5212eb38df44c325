"""Evaluation sets in CLIP_benchmark's WebDataset layout: tar shards -> batches of images with
labels or captions.

folder/test/nshards.txt, 0.tar, 1.tar ...    how many tars; they hold KEY.{jpg,jpeg,png,webp}
                                             and KEY.cls (a label) or KEY.txt (captions)
folder/classnames.txt                          one a line, by label
folder/zeroshot_classification_templates.txt   one a line, with the placeholder {c}
folder/dataset_type.txt                        absent: classification; or "retrieval"
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from pipeline.data.transforms import eval_transform

_IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
_NUM_THREADS = 4


class EvalSetError(ValueError):
    """The set is not complete or not as its files say; a score on it would be wrong. The message
    names file and fix.
    """


@dataclass(frozen=True, slots=True)
class _Member:
    """Offset and size in bytes of a member's data in a tar."""

    path: Path
    offset: int
    size: int

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            data = os.pread(file.fileno(), self.size, self.offset)
        if len(data) < self.size:
            raise EvalSetError(f"{self.path} ends within a member: copy it again")
        return data


@dataclass(frozen=True, slots=True)
class _Sample:
    key: str
    image: _Member
    target: int | list[str]


Labels = torch.Tensor | list[list[str]]


@dataclass(frozen=True)
class EvalSet:
    name: str
    kind: str
    """"classification" or "retrieval"."""
    classnames: list[str]
    """By label; empty for retrieval."""
    templates: list[str]
    """With the placeholder {c}; empty for retrieval."""
    num_samples: int
    """Of all ranks together."""
    image_size: int
    rank: int
    world_size: int
    _samples: list[_Sample] = field(repr=False)

    def batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, Labels, torch.Tensor]]:
        """This rank's samples (i % world_size == rank) in order, the last batch shorter.

        Yields images uint8 (B, 3, image_size, image_size); labels int64 (B,), or for retrieval the
        captions of each image; sample_indices int64 (B,). Raises EvalSetError for an image that
        cannot be decoded.
        """
        indices = list(range(self.rank, self.num_samples, self.world_size))
        with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="eval-set") as pool:
            starts = range(0, len(indices), batch_size)
            groups = [indices[start : start + batch_size] for start in starts]
            ahead = [pool.submit(self._pixels, index) for index in groups[0]] if groups else []
            for number, group in enumerate(groups):
                current = ahead
                following = groups[number + 1] if number + 1 < len(groups) else []
                ahead = [pool.submit(self._pixels, index) for index in following]
                images = torch.from_numpy(np.stack([future.result() for future in current]))
                yield images, self._labels(group), torch.tensor(group, dtype=torch.int64)

    def _pixels(self, index: int) -> np.ndarray:
        sample = self._samples[index]
        try:
            return eval_transform(sample.image.read(), self.image_size)
        except (OSError, ValueError, SyntaxError) as error:
            raise EvalSetError(
                f"{self.name}: {sample.key} in {sample.image.path} cannot be decoded: {error}. "
                f"A score without it would not be comparable; fetch the set again"
            ) from error

    def _labels(self, group: list[int]) -> Labels:
        targets = [self._samples[index].target for index in group]
        if self.kind == "retrieval":
            return targets  # type: ignore[return-value]
        return torch.tensor(targets, dtype=torch.int64)


def load_eval_set(
    folder: Path | str, image_size: int, rank: int = 0, world_size: int = 1
) -> EvalSet:
    """Reads every tar's member headers, labels and captions (not the images), and checks that they
    agree.

    Raises EvalSetError for a missing file, a number of shards other than nshards.txt says, a tar
    cut short, a sample without image or target, a key that occurs twice, or a label without a class
    name.
    """
    folder = Path(folder)
    kind_file = folder / "dataset_type.txt"
    kind = kind_file.read_text().strip() if kind_file.is_file() else "classification"
    if kind not in ("classification", "retrieval"):
        raise EvalSetError(f"{kind_file} says {kind!r}; classification and retrieval can be scored")
    classnames: list[str] = []
    templates: list[str] = []
    if kind == "classification":
        classnames = _lines(folder / "classnames.txt")
        templates = _lines(folder / "zeroshot_classification_templates.txt")
        for template in templates:
            if "{c}" not in template:
                raise EvalSetError(
                    f"template {template!r} of {folder} has no {{c}} where the class name goes"
                )
    samples = [
        sample
        for shard in _shards(folder / "test")
        for sample in _read_shard(shard, "cls" if kind == "classification" else "txt")
    ]
    _check_samples(folder, samples, len(classnames))
    return EvalSet(
        name=folder.name,
        kind=kind,
        classnames=classnames,
        templates=templates,
        num_samples=len(samples),
        image_size=image_size,
        rank=rank,
        world_size=world_size,
        _samples=samples,
    )


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise EvalSetError(f"{path} is missing: a classification set needs it")
    # Only "\n" ends a line: str.splitlines would also cut at U+0085 and U+2028, which occur inside
    # names and captions.
    lines = path.read_text(encoding="utf-8").strip("\n").split("\n")
    if not all(line.strip() for line in lines):
        raise EvalSetError(f"{path} is empty or has an empty line: line i belongs to label i")
    return [line.strip() for line in lines]


def _shards(folder: Path) -> list[Path]:
    count_file = folder / "nshards.txt"
    if not count_file.is_file():
        raise EvalSetError(
            f"{count_file} is missing: it holds the number of shards, which is checked"
        )
    text = count_file.read_text().strip()
    if not text.isdecimal() or int(text) < 1:
        raise EvalSetError(f"{count_file} holds {text!r}, not a number of shards")
    expected = [folder / f"{number}.tar" for number in range(int(text))]
    found = sorted(folder.glob("*.tar"))
    if set(found) != set(expected):
        raise EvalSetError(
            f"{folder}: nshards.txt says 0.tar to {len(expected) - 1}.tar, "
            f"found {[path.name for path in found]}: fetch the set again"
        )
    return expected


def _read_shard(path: Path, target_suffix: str) -> list[_Sample]:
    images: dict[str, _Member] = {}
    targets: dict[str, _Member] = {}
    for name, member in _members(path):
        key, _, suffix = name.partition(".")
        kept = images if suffix in _IMAGE_SUFFIXES else targets if suffix == target_suffix else None
        if kept is None:
            continue
        if key in kept:
            raise EvalSetError(
                f"{path}: sample {key} has two .{suffix} or image members; fetch the set again"
            )
        kept[key] = member
    if images.keys() != targets.keys():
        odd = sorted(images.keys() ^ targets.keys())
        raise EvalSetError(
            f"{path}: {len(odd)} samples lack image or .{target_suffix}, the first {odd[0]}"
        )
    return [
        _Sample(key, image, _target(key, targets[key], target_suffix))
        for key, image in images.items()
    ]


def _members(path: Path) -> Iterator[tuple[str, _Member]]:
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                if info.isfile():
                    yield info.name, _Member(path, info.offset_data, info.size)
            end = tar.offset
    except (tarfile.TarError, OSError) as error:
        raise EvalSetError(
            f"{path} cannot be read as a tar: {error}. Fetch the set again"
        ) from error
    # A tar that was cut between two members reads as a shorter one, unless its end-of-archive block
    # is asked for.
    with path.open("rb") as file:
        if os.pread(file.fileno(), tarfile.BLOCKSIZE, end) != bytes(tarfile.BLOCKSIZE):
            raise EvalSetError(
                f"{path} has no end-of-archive block, it was cut short: fetch the set again"
            )


def _target(key: str, member: _Member, suffix: str) -> int | list[str]:
    try:
        text = member.read().decode()
        if suffix == "cls":
            return int(text)
    except ValueError as error:
        raise EvalSetError(f"{member.path}: {key}.{suffix} is not valid: {error}") from error
    captions = [line.strip() for line in text.split("\n") if line.strip()]
    if not captions:
        raise EvalSetError(f"{member.path}: {key}.{suffix} holds no caption")
    return captions


def _check_samples(folder: Path, samples: list[_Sample], num_classes: int) -> None:
    if not samples:
        raise EvalSetError(f"{folder} holds no samples")
    keys: set[str] = set()
    for sample in samples:
        if sample.key in keys:
            raise EvalSetError(
                f"{sample.image.path}: key {sample.key} occurs in an earlier shard too"
            )
        keys.add(sample.key)
        if isinstance(sample.target, int) and not 0 <= sample.target < num_classes:
            raise EvalSetError(
                f"{sample.image.path}: {sample.key} has label {sample.target}, "
                f"classnames.txt names {num_classes} classes"
            )
