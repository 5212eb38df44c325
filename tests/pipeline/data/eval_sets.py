"""Small evaluation sets in CLIP_benchmark's layout, written with tarfile alone."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

Members = dict[str, bytes]


def write_tar(path: Path, members: Members) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_classification(
    folder: Path,
    images: Sequence[bytes],
    labels: Sequence[int],
    classnames: Sequence[str],
    templates: Sequence[str] = ("a photo of a {c}.",),
    per_shard: int = 10,
    suffix: str = "jpg",
) -> Path:
    """Returns `folder`, which then holds a classification set of these images."""
    pairs = [
        {f"s{i:07d}.{suffix}": image, f"s{i:07d}.cls": str(label).encode()}
        for i, (image, label) in enumerate(zip(images, labels))
    ]
    _write_shards(folder, pairs, per_shard)
    (folder / "classnames.txt").write_text("\n".join(classnames), encoding="utf-8")
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(templates) + "\n")
    return folder


def write_retrieval(
    folder: Path,
    images: Sequence[bytes],
    captions: Sequence[Sequence[str]],
    per_shard: int = 10,
    suffix: str = "jpg",
) -> Path:
    """Returns `folder`, which then holds a retrieval set of these images."""
    pairs = [
        {f"s{i:07d}.{suffix}": image, f"s{i:07d}.txt": "\n".join(lines).encode()}
        for i, (image, lines) in enumerate(zip(images, captions))
    ]
    _write_shards(folder, pairs, per_shard)
    (folder / "dataset_type.txt").write_text("retrieval\n")
    return folder


def _write_shards(folder: Path, samples: Sequence[Members], per_shard: int) -> None:
    test = folder / "test"
    test.mkdir(parents=True)
    starts = range(0, len(samples), per_shard)
    for number, start in enumerate(starts):
        members: Members = {}
        for sample in samples[start : start + per_shard]:
            members.update(sample)
        write_tar(test / f"{number}.tar", members)
    (test / "nshards.txt").write_text(str(len(starts)))
