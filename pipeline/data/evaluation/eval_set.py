"""Evaluation sets in CLIP_benchmark's WebDataset layout: tars -> images with labels or captions.

folder/test/nshards.txt     the number of tars
folder/test/0.tar ...       KEY.{jpg,jpeg,png,webp} with KEY.cls (a label) or KEY.txt (captions)
folder/classnames.txt       one a line, by label
folder/zeroshot_classification_templates.txt    one a line, {c} stands for the class name
folder/dataset_type.txt     absent: classification; or "retrieval"
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from pipeline.data.evaluation.eval_shards import EvalSample, EvalSetError, list_shards, read_shard
from pipeline.data.samples.decode import DecodeError
from pipeline.data.samples.transforms import eval_transform
from pipeline.data.shards.files import FilePool

_NUM_THREADS = 4

Labels = torch.Tensor | list[list[str]]


@dataclass(frozen=True, kw_only=True)
class EvalSet:
    """One rank's view of an evaluation set; every rank iterates its own share."""

    name: str
    kind: str
    """"classification" or "retrieval"; a retrieval set has neither class names nor templates."""
    classnames: list[str]
    """Class names, by label."""
    templates: list[str]
    """Prompt templates, each with the placeholder {c} for the class name."""
    num_samples: int
    """Number of samples of all ranks together."""
    image_size: int
    rank: int
    world_size: int
    samples: list[EvalSample] = field(repr=False)
    """Samples of all ranks, in the order of the shards."""

    def batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, Labels, torch.Tensor]]:
        """This rank's samples (i % world_size == rank) in order; the last batch may be smaller.

        Yields images uint8 (B, 3, image_size, image_size), labels int64 (B,) or for retrieval the
        captions of each image, and sample_indices int64 (B,). Images are decoded by CLIP's own
        transform; the next batch is prefetched. Raises EvalSetError for an image that cannot be
        decoded.
        """
        indices = list(range(self.rank, self.num_samples, self.world_size))
        groups = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
        with closing(FilePool()) as files:
            pool = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="eval-set")
            try:
                prefetched: list[Future[np.ndarray]] = []
                for group, following in zip(groups, [*groups[1:], []]):
                    current = prefetched or [
                        pool.submit(self._pixels, index, files) for index in group
                    ]
                    prefetched = [pool.submit(self._pixels, index, files) for index in following]
                    images = torch.from_numpy(np.stack([future.result() for future in current]))
                    yield images, self._labels(group), torch.tensor(group, dtype=torch.int64)
            finally:
                pool.shutdown(cancel_futures=True)

    def _pixels(self, index: int, files: FilePool) -> np.ndarray:
        sample = self.samples[index]
        try:
            return eval_transform(sample.image.read(files), self.image_size)
        except (OSError, DecodeError) as error:
            raise EvalSetError(
                f"{self.name}: {sample.key} in {sample.image.path} cannot be decoded ({error}): "
                f"fetch the set again, or store this picture as an 8-bit PNG; a score without this "
                f"sample would not compare"
            ) from error

    def _labels(self, group: list[int]) -> Labels:
        if self.kind == "retrieval":
            return [list(self.samples[index].target) for index in group]  # type: ignore[arg-type]
        return torch.tensor([self.samples[index].target for index in group], dtype=torch.int64)


def load_eval_set(
    folder: Path | str, image_size: int, rank: int = 0, world_size: int = 1
) -> EvalSet:
    """Read member headers, labels and captions of every tar (no images), and check that they agree.

    Raises EvalSetError for a folder that is no evaluation set, a missing file, another number of
    tars than nshards.txt says, a tar cut short, a sample without image or target, a key that occurs
    twice, a label without class name.
    """
    folder = Path(folder)
    if not (folder / "test").is_dir():
        raise EvalSetError(
            f"{folder} is no evaluation set: it has no folder test/ with nshards.txt and 0.tar; "
            f"correct eval.datasets, or fetch the set again"
        )
    kind = _kind(folder / "dataset_type.txt")
    classnames: list[str] = []
    templates: list[str] = []
    if kind == "classification":
        classnames = _lines(folder / "classnames.txt")
        templates = _lines(folder / "zeroshot_classification_templates.txt")
        for template in templates:
            if "{c}" not in template:
                raise EvalSetError(
                    f"{folder}: template {template!r} has no {{c}} for the class: write {{c}} "
                    f"where its name goes"
                )
    target_suffix = "cls" if kind == "classification" else "txt"
    with closing(FilePool()) as files:
        shards = [read_shard(path, target_suffix, files) for path in list_shards(folder / "test")]
    samples = [sample for shard in shards for sample in shard]
    _check_samples(folder, samples, len(classnames))
    return EvalSet(
        name=Path(os.path.abspath(folder)).name,
        kind=kind,
        classnames=classnames,
        templates=templates,
        num_samples=len(samples),
        image_size=image_size,
        rank=rank,
        world_size=world_size,
        samples=samples,
    )


def _kind(path: Path) -> str:
    kind = path.read_text().strip() if path.is_file() else "classification"
    if kind not in ("classification", "retrieval"):
        raise EvalSetError(f"{path} says {kind!r}: only classification and retrieval are scored")
    return kind


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise EvalSetError(f"{path} is missing: a classification set needs it")
    try:
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except UnicodeDecodeError as error:
        raise EvalSetError(f"{path} is not UTF-8 ({error}): save it as UTF-8") from error
    if not all(line.strip() for line in lines):
        raise EvalSetError(f"{path} is empty or has an empty line")
    return [line.strip() for line in lines]


def _check_samples(folder: Path, samples: list[EvalSample], num_classes: int) -> None:
    if not samples:
        raise EvalSetError(f"{folder} holds no samples")
    keys: set[str] = set()
    for sample in samples:
        if sample.key in keys:
            raise EvalSetError(f"{sample.image.path}: {sample.key} occurs in an earlier shard too")
        keys.add(sample.key)
        if isinstance(sample.target, int) and not 0 <= sample.target < num_classes:
            raise EvalSetError(
                f"{sample.image.path}: {sample.key} has label {sample.target}, but classnames.txt "
                f"names {num_classes} classes"
            )
