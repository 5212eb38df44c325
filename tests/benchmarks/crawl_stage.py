"""The crawl stage over a list of URLs, in a process of its own.

python -m tests.benchmarks.crawl_stage SETTINGS.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa

from data_tools import crawl
from data_tools.config import DatasetJob
from data_tools.tables.schema import KEPT, DatasetPaths, make_uid, write_table


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    job, paths = DatasetJob(out_dir=settings["out_dir"]), DatasetPaths(Path(settings["out_dir"]))
    job.sources.contact = "bench@example.org"
    for name, value in settings["crawl"].items():
        setattr(job.crawl, name, value)
    rows = [{"uid": make_uid(url, "a photo"), "url": url} for url in settings["urls"]]
    write_table(pa.Table.from_pylist(rows, schema=KEPT), paths.table("kept"), KEPT)
    print(crawl.run(job, paths))


if __name__ == "__main__":
    main()
