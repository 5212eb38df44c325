"""Checks what img2dataset wrote: tars against stats, table rows against tar members, and every
image is decoded.

This is needed because img2dataset exits with 0 when shards failed, and leaves a truncated tar under
its final name when a worker was killed.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.crawl.guard import GuardFate
from data_tools.tables.schema import FATES, FETCHED, FETCHED_STATUS, DataError

_COLUMNS = ["key", "url_id", "status", "error_message", "width", "height"]
_DISK_FULL = b"No space left on device"
DECODE_THREADS = 2
_NOT_ASKED = GuardFate(
    -1, "rejected:no_face_boxes", detail="no table of crawl.face_boxes.paths knows the URL"
)


@dataclass(frozen=True)
class PartUrls:
    """The distinct URLs of a part, each with the uids of all its captions. The position of a URL in
    the list is its id for driver, guard and img2dataset."""

    urls: list[str]
    uids: list[list[str]]
    face_boxes: list[list | None] | None
    """Per URL, the boxes of its faces; an entry None: the image is in no table of boxes. None for
    the whole: no faces are to be blurred."""

    def __len__(self) -> int:
        return len(self.urls)

    @classmethod
    def from_rows(cls, rows: pa.Table, blur: bool) -> PartUrls:
        """`rows`: a ROWS table in which equal URLs are neighbours; `blur`: faces are to be
        blurred."""
        urls, uids, boxes = [], [], []
        for url, group in groupby(rows.to_pylist(), key=lambda row: str(row["url"])):
            members = list(group)
            urls.append(url)
            uids.append([row["uid"] for row in members])
            boxes.append(members[0]["face_boxes"])
        return cls(urls, uids, boxes if blur else None)

    def asked(self) -> list[int]:
        """Ids of the URLs that are fetched: all, or, if faces are to be blurred, those with
        boxes."""
        if self.face_boxes is None:
            return list(range(len(self.urls)))
        return [number for number, boxes in enumerate(self.face_boxes) if boxes is not None]


@dataclass(frozen=True)
class PartResult:
    """The two tables of a verified part."""

    fetched: pa.Table  # FETCHED
    fates: pa.Table  # FATES: every row of the part, once


def verify_part(
    images: Path, urls: PartUrls, num_shards: int, fates: Path, log: Path, name: str
) -> PartResult:
    """Check the shards in the folder `images` and join them with the guard's `fates` file.

    `name` is the folder's path relative to the crawl folder, for the column FETCHED.shard.
    DataError names the tar that is missing, truncated or does not agree with its stats, and the URL
    without a fate.
    """
    if _DISK_FULL in log.read_bytes():
        raise DataError(f"the disk of {images} is full: free some of it")
    guard_fates = read_guard_fates(fates)
    missing = set(urls.asked()) - guard_fates.keys()
    if missing:
        raise DataError(f"{len(missing)} of {len(urls)} URLs have no fate in {fates}")
    stored: dict[int, dict] = {}
    rows: dict[int, dict] = {}
    with ThreadPoolExecutor(DECODE_THREADS) as decoders:
        for number in range(num_shards):
            tar = images / f"{number:05d}.tar"
            shard_rows = _read_rows(tar)
            members = _read_members(tar, shard_rows, decoders)
            for row in shard_rows:
                rows[row["url_id"]] = row
                if row["status"] == "success":
                    stored[row["url_id"]] = _place(row, members, tar, f"{name}/{tar.name}")
    return _join(urls, guard_fates, rows, stored)


def _place(row: dict, members: dict[str, tuple[int, int]], tar: Path, shard: str) -> dict:
    offset, size = members[row["key"]]
    size_in_pixels = {"width": row["width"], "height": row["height"]}
    return {"shard": shard, "offset": offset, "size": size, **size_in_pixels}


def _join(
    urls: PartUrls, guard_fates: dict[int, GuardFate], rows: dict[int, dict], stored: dict
) -> PartResult:
    fetched, decided = [], []
    for number, uids in enumerate(urls.uids):
        fate = guard_fates.get(number, _NOT_ASKED)
        status, detail = _decide(fate, rows.get(number))
        if number in stored and fate.status != FETCHED_STATUS:
            raise DataError(
                f"{stored[number]['shard']} holds an image of {urls.urls[number]}, which the guard "
                "did not deliver"
            )
        for uid in uids:
            decided.append(
                {"uid": uid, "status": status, "http_status": fate.http_status, "detail": detail}
            )
            if status == FETCHED_STATUS:
                original = {"original_width": fate.width, "original_height": fate.height}
                place = stored[number]
                fetched.append({"uid": uid, **place, **original, "sha256": fate.sha256})
    return PartResult(
        pa.Table.from_pylist(fetched, schema=FETCHED), pa.Table.from_pylist(decided, schema=FATES)
    )


def _decide(guard: GuardFate, row: dict | None) -> tuple[str, str]:
    """(status, detail) of a URL: the guard knows why a fetch failed, img2dataset knows whether the
    delivered bytes became an image."""
    if guard.status != FETCHED_STATUS:
        return guard.status, guard.detail
    if row is None:
        return "failed:img2dataset", "no row for it: see img2dataset.log"
    if row["status"] == "success":
        return FETCHED_STATUS, ""
    if row["status"] == "failed_to_resize":
        return "rejected:not_decodable", row["error_message"]
    return "failed:img2dataset", row["error_message"]


def read_guard_fates(path: Path) -> dict[int, GuardFate]:
    """URL id -> its last fate in the guard's file."""
    fates = {}
    with path.open() as lines:
        for line in lines:
            fate = GuardFate(**json.loads(line))
            fates[fate.id] = fate
    return fates


def _read_rows(tar: Path) -> list[dict]:
    stats_file = tar.with_name(f"{tar.stem}_stats.json")
    if not stats_file.exists():
        raise DataError(f"img2dataset did not finish {tar} (no {stats_file.name})")
    stats = json.loads(stats_file.read_text())
    rows: list[dict] = pq.read_table(tar.with_suffix(".parquet"), columns=_COLUMNS).to_pylist()
    successes = sum(row["status"] == "success" for row in rows)
    if successes != stats["successes"]:
        raise DataError(
            f"{tar}: {stats['successes']} images by its stats, {successes} by its table"
        )
    return rows


def _read_members(
    tar: Path, rows: list[dict], decoders: ThreadPoolExecutor
) -> dict[str, tuple[int, int]]:
    """Key -> (offset, size) of its image in the tar. Decodes each image once; raises DataError."""
    members = {}
    try:
        with tarfile.open(tar, "r:") as archive:
            for key, group in _grouped(archive):
                by_suffix = {member.name.rpartition(".")[2]: member for member in group}
                if key in members or by_suffix.keys() != {"jpg", "json"} or len(group) != 2:
                    names = ", ".join(member.name for member in group)
                    raise DataError(f"{tar}: {names} is no whole sample of an image and its json")
                image = by_suffix["jpg"]
                members[key] = (image.offset_data, image.size)
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{tar} is truncated or no tar: {error}") from error
    wanted = {row["key"] for row in rows if row["status"] == "success"}
    if wanted != members.keys():
        raise DataError(f"{tar} holds {len(members)} images, its table has {len(wanted)}")
    descriptor = os.open(tar, os.O_RDONLY)
    try:
        places = members.values()
        decoded = decoders.map(lambda place: _decodes(descriptor, *place), places)
        for key, whole in zip(members, decoded, strict=True):
            if not whole:
                raise DataError(f"{tar}: the image {key}.jpg does not decode")
    finally:
        os.close(descriptor)
    return members


def _grouped(archive: tarfile.TarFile) -> Iterator[tuple[str, list[tarfile.TarInfo]]]:
    """Yield (key, neighbouring members of that key), as every WebDataset reader groups them."""
    for key, group in groupby(archive, key=lambda member: member.name.rpartition(".")[0]):
        yield key, list(group)


def _decodes(descriptor: int, offset: int, size: int) -> bool:
    # at an eighth of the size the inverse DCT is left out, but all of the entropy coding is decoded
    content = np.frombuffer(os.pread(descriptor, size, offset), np.uint8)
    return bool(size) and cv2.imdecode(content, cv2.IMREAD_REDUCED_GRAYSCALE_8) is not None
