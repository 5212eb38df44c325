"""The images and captions that loaders are measured on."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.dataset.manifest import INDEX, Manifest, save_manifest
from tests.pipeline.data.images import encode, synthetic_photo
from tests.pipeline.data.made_shards import make_samples, write_shard, write_shards

IMAGE_SIZE = 224
BATCH_SIZE = 64
CROP_SCALE_MIN = 0.9
PLAIN = "A black and white cat sits on a wooden table beside a bowl, photo {number}"
NASTY = "L&rsquo;été à la plage — “photo” n° {number} &amp; vidéo"


def caption(number: int) -> str:
    """One in five is not plain ASCII."""
    return (NASTY if number % 5 == 0 else PLAIN).format(number=number)


def photo(number: int) -> bytes:
    """256 x 256 pixels, 26 kB."""
    return encode(synthetic_photo(number, 256, 256), parameters=(cv2.IMWRITE_JPEG_QUALITY, 88))


def write_data(folder: Path, num_samples: int) -> tuple[Path, float]:
    """Shards of 500; (manifest, mean bytes of a JPEG)."""
    distinct = [photo(number) for number in range(min(num_samples, 200))]
    samples = make_samples(num_samples, lambda number: distinct[number % len(distinct)])
    for number, sample in enumerate(samples):
        sample.caption = caption(number)
    mean = sum(len(data) for data in distinct) / len(distinct)
    return write_shards(folder, samples, per_shard=500), mean


def write_large(folder: Path, num_shards: int, per_shard: int) -> Path:
    """A manifest of num_shards * per_shard samples: links to one shard, whose index names its one
    sample per_shard times.
    """
    folder.mkdir()
    shard = write_shard(folder, "original", make_samples(1, photo))
    row = pq.read_table(folder / shard.index_path).to_pylist()[0]
    columns: dict[str, list[object]] = {name: [row[name]] * per_shard for name in INDEX.names}
    columns["key"] = [f"k{number}" for number in range(per_shard)]
    pq.write_table(pa.table(columns, schema=INDEX), folder / shard.index_path, row_group_size=1024)
    shards = []
    for number in range(num_shards):
        linked = shard._replace(
            path=f"{number:06d}.tar",
            index_path=f"{number:06d}.index.parquet",
            num_samples=per_shard,
        )
        os.link(folder / shard.path, folder / linked.path)
        os.link(folder / shard.index_path, folder / linked.index_path)
        shards.append(linked)
    save_manifest(Manifest(folder, "large", tuple(shards)), folder / "manifest.json")
    return folder / "manifest.json"


def forget_pages(folder: Path) -> None:
    """Drop a folder's files from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
