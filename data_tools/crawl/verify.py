"""What img2dataset left behind, believed only after a look: tars against stats, rows against
members, every image decoded.

img2dataset exits with 0 when shards failed and leaves a truncated tar under its final name when a
worker was killed.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.crawl.guard import GuardFate
from data_tools.schema import FATES, FETCHED, FETCHED_STATUS, DataError

_COLUMNS = ["key", "uid", "status", "error_message", "width", "height"]


@dataclass(frozen=True)
class PartResult:
    fetched: pa.Table  # FETCHED
    fates: pa.Table  # FATES: every row of the part, once


def verify_part(
    images: Path, uids: list[str], num_shards: int, fates: Path, name: str
) -> PartResult:
    """Check the shards in the folder `images` and join them with the guard's `fates` file.

    `name` is how FETCHED shall name the folder, relative to the crawl folder. DataError names the
    tar that is missing, truncated or does not agree with its stats.
    """
    guard_fates = read_guard_fates(fates)
    by_uid = {uids[number]: fate for number, fate in guard_fates.items()}
    fetched, rows = [], {}
    for number in range(num_shards):
        tar = images / f"{number:05d}.tar"
        shard_rows = _read_rows(tar)
        members = _read_members(tar, shard_rows)
        for row in shard_rows:
            rows[row["uid"]] = row
            if row["status"] == "success":
                offset, size = members[row["key"]]
                fate = by_uid.get(row["uid"])
                if fate is None or fate.status != FETCHED_STATUS:
                    raise DataError(f"{tar} holds {row['key']}, which the guard did not deliver")
                fetched.append(
                    {
                        "uid": row["uid"],
                        "shard": f"{name}/{tar.name}",
                        "offset": offset,
                        "size": size,
                        "width": row["width"],
                        "height": row["height"],
                        "original_width": fate.width,
                        "original_height": fate.height,
                        "sha256": fate.sha256,
                    }
                )
    decided = [_fate_row(uid, by_uid.get(uid), rows.get(uid)) for uid in uids]
    return PartResult(
        pa.Table.from_pylist(fetched, schema=FETCHED), pa.Table.from_pylist(decided, schema=FATES)
    )


def read_guard_fates(path: Path) -> dict[int, GuardFate]:
    """Row number -> its last fate."""
    fates = {}
    for line in path.read_text().splitlines():
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


def _read_members(tar: Path, rows: list[dict]) -> dict[str, tuple[int, int]]:
    """Key -> offset and size of its image, each decoded once."""
    members = {}
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                stem, _, extension = member.name.rpartition(".")
                if extension == "jpg":
                    members[stem] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{tar} is truncated or no tar: {error}") from error
    wanted = {row["key"] for row in rows if row["status"] == "success"}
    if wanted != members.keys():
        raise DataError(f"{tar} holds {len(members)} images, its table has {len(wanted)}")
    descriptor = os.open(tar, os.O_RDONLY)
    try:
        for key, (offset, size) in members.items():
            content = np.frombuffer(os.pread(descriptor, size, offset), np.uint8)
            # an eighth of the size is decoded without the inverse DCT but through all of the
            # entropy coding
            if not size or cv2.imdecode(content, cv2.IMREAD_REDUCED_GRAYSCALE_8) is None:
                raise DataError(f"{tar}: the image {key}.jpg does not decode")
    finally:
        os.close(descriptor)
    return members


def _fate_row(uid: str, guard: GuardFate | None, row: dict | None) -> dict:
    """The guard knows why a fetch failed, img2dataset whether what the guard delivered became an
    image."""
    http_status = guard.http_status if guard else None
    if row is not None and row["status"] == "success":
        status, detail = FETCHED_STATUS, ""
    elif guard is not None and guard.status != FETCHED_STATUS:
        status, detail = guard.status, guard.detail
    elif row is not None and row["status"] == "failed_to_resize":
        status, detail = "rejected:not_decodable", row["error_message"]
    else:
        status, detail = "failed:img2dataset", row["error_message"] if row else "no row for it"
    return {"uid": uid, "status": status, "http_status": http_status, "detail": detail}


def fate_counts(fates: pa.Table) -> dict[str, int]:
    """Status -> rows, the most frequent first."""
    return dict(Counter(fates["status"].to_pylist()).most_common())
