from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from data_tools import crawl
from data_tools.config import DatasetJob
from data_tools.tables.schema import DatasetPaths
from tests.data_tools.crawl.hostile_server import Site, hostile_site
from tests.data_tools.crawl.jobs import make_job, write_kept

# path -> fate, of the one real crawl that the tests of this folder share
CRAWLED = {
    **{f"/n/{number}.jpg": "fetched" for number in range(40)},
    "/large.jpg": "fetched",
    "/rotated.jpg": "fetched",
    "/16bit.png": "fetched",
    "/transparent.png": "fetched",
    "/icon.gif": "fetched",
    "/cut.jpg": "rejected:not_decodable",
    "/status/404": "failed:http_404",
    "/loris.jpg": "failed:timeout",
    "/forbidden/a.jpg": "rejected:robots",
    "/pixel.gif": "rejected:too_small",
    "/bomb.png": "rejected:too_many_pixels",
}


@dataclass
class Crawl:
    job: DatasetJob
    paths: DatasetPaths
    rows: list[dict]
    counts: dict[str, int]
    site: Site

    def uid(self, path: str) -> str:
        return next(row["uid"] for row in self.rows if row["url"].endswith(path))


@pytest.fixture(scope="session")
def crawled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crawl]:
    """A real crawl through guard and img2dataset, in two parts. Tests read it and change
    nothing."""
    out_dir: Path = tmp_path_factory.mktemp("crawled")
    with hostile_site() as site:
        rows = write_kept(out_dir, [site.url(path) for path in CRAWLED])
        job = make_job(out_dir, allow_private=[site.host], samples_per_part=30)
        paths = DatasetPaths(out_dir)
        yield Crawl(job, paths, rows, crawl.run(job, paths), site)
