"""A crawl made by hand: pictures and captions, as the crawl stage leaves them."""

from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from data_tools.config import DatasetJob
from data_tools.tables.schema import CURATED, FATES, DatasetPaths, read_table
from tests.data_tools.made_tables import candidate, fetched, write_rows

PER_TAR = 20


@dataclass
class Pair:
    image: bytes
    caption: str
    values: dict = field(default_factory=dict)
    """Of the candidate: query_ids, mature, ..."""


def photo(seed: int, side: int = 128) -> np.ndarray:
    """A smooth random picture, (side, side, 3) uint8, unlike that of any other seed."""
    noise = np.random.default_rng(seed).uniform(0, 255, (6, 6, 3)).astype(np.float32)
    large = cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
    return np.clip(large, 0, 255).astype(np.uint8)


def jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def resized(image: np.ndarray, side: int) -> np.ndarray:
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)


def crawl(out_dir: Path, pairs: list[Pair]) -> tuple[DatasetPaths, list[str]]:
    """Tables up to fetched.parquet and the crawl's tars; and the uid of each pair."""
    paths = DatasetPaths(out_dir)
    rows = [
        candidate(f"https://e.org/{number}.jpg", pair.caption, **pair.values)
        for number, pair in enumerate(pairs)
    ]
    images = []
    for number, (pair, row) in enumerate(zip(pairs, rows, strict=True)):
        shard = f"part-00000/images/{number // PER_TAR:05d}.tar"
        (paths.crawl / shard).parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(paths.crawl / shard, "a") as archive:
            info = tarfile.TarInfo(f"{number:09d}.jpg")
            info.size = len(pair.image)
            place = archive.offset + 512
            archive.addfile(info, io.BytesIO(pair.image))
        decoded = cv2.imdecode(np.frombuffer(pair.image, np.uint8), cv2.IMREAD_COLOR)
        height, width = decoded.shape[:2] if decoded is not None else (64, 64)
        images.append(
            fetched(
                row["uid"],
                shard=shard,
                offset=place,
                size=len(pair.image),
                width=width,
                height=height,
                original_width=width,
                original_height=height,
                sha256=hashlib.sha256(pair.image).hexdigest(),
            )
        )
    return write_rows(out_dir, rows, images), [row["uid"] for row in rows]


def job_of(paths: DatasetPaths, **curate: object) -> DatasetJob:
    job = DatasetJob(out_dir=str(paths.root))
    job.curate.processes = 1
    for name, value in curate.items():
        getattr(job.curate, name)  # a name that is wrong fails here
        setattr(job.curate, name, value)
    return job


def fates_of(paths: DatasetPaths) -> dict[str, tuple[str, str]]:
    """uid -> (status, detail)."""
    rows = read_table(paths.fates("curate"), FATES).to_pylist()
    return {row["uid"]: (row["status"], row["detail"]) for row in rows}


def curated_of(paths: DatasetPaths) -> dict[str, dict]:
    rows = read_table(paths.table("curated"), CURATED).to_pylist()
    return {row["uid"]: row for row in rows}
