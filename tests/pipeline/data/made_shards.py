"""Small shards, written with nothing of the code under test but the manifest: for tests of whatever
reads them.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.dataset.manifest import INDEX, Manifest, ShardEntry, file_sha256, save_manifest

KINDS = {"jpg": "image", "txt": "text", "json": "json"}


@dataclass
class Sample:
    """A member whose bytes are None is left out of the tar; `caption` may be bytes to write
    something that is not UTF-8.
    """

    key: str
    image: bytes | None
    caption: str | bytes | None
    info: dict[str, object] | None = field(default_factory=dict)


def jpeg(seed: int, width: int = 40, height: int = 32, quality: int = 95) -> bytes:
    """A JPEG whose smooth content depends on the seed."""
    rng = np.random.default_rng(seed)
    image = cv2.resize(
        rng.integers(0, 256, (4, 4, 3), dtype=np.uint8),
        (width, height),
        interpolation=cv2.INTER_CUBIC,
    )
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def make_samples(count: int, make_image: Callable[[int], bytes] = jpeg) -> list[Sample]:
    """`count` good samples, keys s00000000 and so on, every caption different."""
    return [
        Sample(
            f"s{number:08d}",
            make_image(number),
            f"a photo of thing number {number}",
            {"number": number},
        )
        for number in range(count)
    ]


def write_shards(folder: Path, samples: Sequence[Sample], per_shard: int) -> Path:
    """Writes shards/*.tar with their indices and manifest.json below `folder`; returns the
    manifest's path.
    """
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    groups = [samples[start : start + per_shard] for start in range(0, len(samples), per_shard)]
    shards = [
        write_shard(folder, f"shards/{number:06d}", group) for number, group in enumerate(groups)
    ]
    path = folder / "manifest.json"
    save_manifest(Manifest(folder, "test", tuple(shards)), path)
    return path


def write_shard(folder: Path, stem: str, samples: Sequence[Sample]) -> ShardEntry:
    """One tar with its index; for tests that put the manifest together themselves."""
    tar_path, index_path = folder / f"{stem}.tar", folder / f"{stem}.index.parquet"
    with tarfile.open(tar_path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            for suffix, content in _contents(sample).items():
                info = tarfile.TarInfo(f"{sample.key}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    pq.write_table(_index(tar_path, samples), index_path)
    return ShardEntry(
        path=f"{stem}.tar",
        num_samples=len(samples),
        num_bytes=tar_path.stat().st_size,
        sha256=file_sha256(tar_path),
        index_path=f"{stem}.index.parquet",
        index_sha256=file_sha256(index_path),
    )


def _contents(sample: Sample) -> dict[str, bytes]:
    """In the order of the suffixes, as pack writes them."""
    caption = sample.caption.encode() if isinstance(sample.caption, str) else sample.caption
    info = None if sample.info is None else json.dumps(sample.info).encode()
    return {
        suffix: content
        for suffix, content in (("jpg", sample.image), ("json", info), ("txt", caption))
        if content is not None
    }


def _index(tar_path: Path, samples: Sequence[Sample]) -> pa.Table:
    rows = {
        sample.key: {
            "key": sample.key,
            **{f"{kind}_{field}": -1 for kind in KINDS.values() for field in ("offset", "size")},
        }
        for sample in samples
    }
    with tarfile.open(tar_path) as tar:
        for member in tar:
            key, _, suffix = member.name.partition(".")
            rows[key][f"{KINDS[suffix]}_offset"] = member.offset_data
            rows[key][f"{KINDS[suffix]}_size"] = member.size
    return pa.Table.from_pylist(list(rows.values()), schema=INDEX)
