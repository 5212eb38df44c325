"""Dataset jobs and kept tables for tests; run as a module, the crawl stage in a process of its own.

python -m tests.data_tools.crawl.jobs OUT_DIR CRAWL-SETTINGS-AS-JSON
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa

from data_tools import crawl
from data_tools.config import DatasetJob
from data_tools.crawl.guard import GuardSettings
from data_tools.crawl.stage import guard_settings
from data_tools.tables.schema import (
    FETCHED,
    KEPT,
    DataError,
    DatasetPaths,
    make_uid,
    read_table,
    write_table,
)
from tests.data_tools.made_tables import candidate


def make_job(out_dir: Path, **crawl_settings: object) -> DatasetJob:
    """A job whose crawl is small and quick; `crawl_settings` are fields of CrawlConfig."""
    job = DatasetJob(out_dir=str(out_dir))
    job.sources.contact = "crawler@example.org"
    job.crawl.image_size, job.crawl.timeout_s, job.crawl.threads = 64, 4.0, 16
    job.crawl.requests_per_host_per_s, job.crawl.retry_rounds = 0.0, 0
    for name, value in crawl_settings.items():
        setattr(job.crawl, name, value)
    return job


def settings(**changes: object) -> GuardSettings:
    """Of a guard with a deadline of 3 s, as the driver would give them; `changes` are fields of
    GuardSettings."""
    job = make_job(Path("unused"), timeout_s=3.0, max_image_bytes=5_000_000)
    job.crawl.connections_per_host = 32
    return dataclasses.replace(guard_settings(job), **changes)  # type: ignore[arg-type]


def write_kept(out_dir: Path, urls: list[str], captions: list[str] | None = None) -> list[dict]:
    """kept.parquet of these URLs, each found by query 0; returns its rows."""
    captions = captions or [f"picture number {number}" for number in range(len(urls))]
    rows = [candidate("http://a.invalid/", caption) for caption in captions]
    for row, url in zip(rows, urls, strict=True):
        row["url"] = url
        try:
            row["uid"] = make_uid(url, row["caption"])
        except ValueError:
            pass  # a URL that has no canonical form; the caption makes the uid its own
    table = pa.Table.from_pylist(rows, schema=KEPT)
    write_table(table, DatasetPaths(out_dir).table("kept"), KEPT)
    return rows


def stored_image(paths: DatasetPaths, row: dict) -> np.ndarray:
    """(height, width, 3) RGB, read by offset and size as pack reads it."""
    with (paths.crawl / row["shard"]).open("rb") as file:
        content = os.pread(file.fileno(), row["size"], row["offset"])
    values = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert values is not None
    return values[:, :, ::-1].astype(int)


def fetched_rows(paths: DatasetPaths) -> dict[str, dict]:
    rows = read_table(paths.table("fetched"), FETCHED).to_pylist()
    return {row["uid"]: row for row in rows}


if __name__ == "__main__":
    out_dir = Path(sys.argv[1])
    try:
        print(crawl.run(make_job(out_dir, **json.loads(sys.argv[2])), DatasetPaths(out_dir)))
    except (DataError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
