"""A dataset job up to the crawl, made by hand: every table and the crawl's tars, without a
network."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from data_tools import curate, rebalance
from data_tools.config import DatasetJob
from data_tools.tables.schema import (
    CANDIDATES,
    FATES,
    FETCHED,
    KEPT,
    QUERIES,
    DatasetPaths,
    write_table,
)
from tests.data_tools.crawl import pictures
from tests.data_tools.made_tables import candidate, fetched

NUM_QUERIES = 12


def make_job(out_dir: Path, samples_per_shard: int = 100) -> DatasetJob:
    job = DatasetJob(out_dir=str(out_dir))
    job.sources.contact = "crawler@example.org"
    job.pack.samples_per_shard = samples_per_shard
    job.balance.max_per_query = 50
    job.curate.near_duplicate_bits = None  # all pictures here are one gradient in many sizes
    job.curate.repair_text = False  # the report must show what the web sent, tags and all
    job.curate.processes = job.pack.processes = 1
    return job


def crawled_job(out_dir: Path, num_kept: int = 250, num_dead: int = 7) -> DatasetPaths:
    """Tables up to fetched.parquet: 10 candidates that balance dropped, `num_kept` kept ones, of
    which the last `num_dead` are 404 and the first is 10 pixels high. Query 11 found nothing."""
    paths = DatasetPaths(out_dir)
    names = [f"query <{n}> & co" for n in range(NUM_QUERIES)]
    queries = [
        {"query_id": n, "query": name, "folded": name, "origin": "user"}
        for n, name in enumerate(names)
    ]
    write_table(pa.Table.from_pylist(queries, QUERIES), paths.table("queries"), QUERIES)
    rows = [_candidate(number) for number in range(num_kept + 10)]
    table = pa.Table.from_pylist(rows, schema=KEPT)
    write_table(table.select(CANDIDATES.names), paths.table("candidates"), CANDIDATES)
    kept, dropped = rows[:num_kept], rows[num_kept:]
    write_table(table.slice(0, num_kept), paths.table("kept"), KEPT)
    alive = kept[: num_kept - num_dead]
    _write_fates(paths, "search", [(row["uid"], "found", None) for row in rows])
    balanced: list[tuple[str, str, int | None]] = [(row["uid"], "kept", None) for row in kept]
    balanced += [(row["uid"], "dropped:balance", None) for row in dropped]
    _write_fates(paths, "balance", balanced)
    crawl_fates = [(row["uid"], "fetched", 200) for row in alive]
    crawl_fates += [(row["uid"], "failed:http_404", 404) for row in kept[len(alive) :]]
    _write_fates(paths, "crawl", crawl_fates)
    write_table(_crawl(paths, alive), paths.table("fetched"), FETCHED)
    return paths


def curated_job(out_dir: Path, **counts: int) -> DatasetPaths:
    paths = crawled_job(out_dir, **counts)
    curate.run(make_job(out_dir), paths)
    rebalance.run(make_job(out_dir), paths)
    return paths


def image_of(number: int) -> bytes:
    return pictures.jpeg(60 + number % 50, 10 if number == 0 else 40 + number // 50)


def _candidate(number: int) -> dict:
    return candidate(
        f"https://site{number % 3}.example/{number}.jpg",
        f"caption {number} <b>\u00e9\u732b</b>",
        query_ids=[number % (NUM_QUERIES - 2), 10] if number % 4 == 0 else [number % 10],
        license=["CC0", "CC BY 4.0", ""][number % 3],
        attribution=f"Painter <script>alert({number})</script>",
        source="commons",
        keep_probability=0.1 + number / 1000,
    )


def _crawl(paths: DatasetPaths, rows: list[dict]) -> pa.Table:
    """Tars of the crawl, 60 images each, and the table that says where the images lie."""
    found = []
    for part, start in enumerate(range(0, len(rows), 60)):
        shard = f"part-{part:05d}/images/00000.tar"
        (paths.crawl / shard).parent.mkdir(parents=True)
        with tarfile.open(paths.crawl / shard, "w") as archive:
            for number in range(start, min(start + 60, len(rows))):
                content = image_of(number)
                info = tarfile.TarInfo(f"{number:09d}.jpg")
                info.size = len(content)
                height, width = pictures.decode(content).shape[:2]
                found.append(
                    fetched(
                        rows[number]["uid"],
                        shard=shard,
                        offset=archive.offset + 512,
                        size=len(content),
                        width=width,
                        height=height,
                        original_width=width,
                        original_height=height,
                        sha256=hashlib.sha256(content).hexdigest(),
                    )
                )
                archive.addfile(info, io.BytesIO(content))
    return pa.Table.from_pylist(found, schema=FETCHED)


def _write_fates(
    paths: DatasetPaths, stage: str, rows: Sequence[tuple[str, str, int | None]]
) -> None:
    table = pa.Table.from_pylist(
        [{"uid": uid, "status": status, "http_status": code} for uid, status, code in rows], FATES
    )
    write_table(table, paths.fates(stage), FATES)
