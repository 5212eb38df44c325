"""Dataset jobs and kept tables for tests; run as a module, the crawl stage in a process of its own.

python -m tests.data_tools.crawl.jobs OUT_DIR CRAWL-SETTINGS-AS-JSON
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa

from data_tools import crawl
from data_tools.config import DatasetJob
from data_tools.schema import KEPT, DataError, DatasetPaths, write_table
from tests.data_tools.tables import candidate


def make_job(out_dir: Path, **crawl_settings: object) -> DatasetJob:
    """A job whose crawl is small and quick; `crawl_settings` are fields of CrawlConfig."""
    job = DatasetJob(out_dir=str(out_dir))
    job.sources.contact = "crawler@example.org"
    job.crawl.image_size, job.crawl.timeout_s, job.crawl.threads = 64, 4.0, 16
    for name, value in crawl_settings.items():
        setattr(job.crawl, name, value)
    return job


def write_kept(out_dir: Path, urls: list[str], captions: list[str] | None = None) -> list[dict]:
    """kept.parquet of these URLs, each found by query 0; returns its rows."""
    captions = captions or [f"picture number {number}" for number in range(len(urls))]
    rows = [candidate(url, caption) for url, caption in zip(urls, captions, strict=True)]
    table = pa.Table.from_pylist(rows, schema=KEPT)
    write_table(table, DatasetPaths(out_dir).table("kept"), KEPT)
    return rows


if __name__ == "__main__":
    out_dir = Path(sys.argv[1])
    try:
        print(crawl.run(make_job(out_dir, **json.loads(sys.argv[2])), DatasetPaths(out_dir)))
    except DataError as error:
        sys.exit(f"error: {error}")
