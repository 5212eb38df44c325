"""Megabytes per second of packing, beside `cp` of the same bytes and sha256 of them.

    python -m tests.benchmarks.bench_pack [--num-samples 60000] [--folder /on/the/disk] [--write]

A crawl of JPEG-sized random files (30 kB and 100 kB on average) in tars of 10,000, packed in the
order of the shuffle with 1 and with 2 processes. `cp` copies the crawl's tars to the same disk.
--write puts the table into tests/benchmarks/results/pack.md.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import platform
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_tools import pack
from data_tools.config import DatasetJob
from data_tools.dataset.manifest import load_manifest
from data_tools.tables.schema import BALANCED, KEPT, QUERIES, DatasetPaths, write_table
from tests.data_tools.made_tables import candidate

RESULTS = Path(__file__).with_name("results") / "pack.md"
PER_TAR = 10_000
MEAN_BYTES = (30_000, 100_000)


def write_crawl(root: Path, num_samples: int, mean_bytes: int) -> DatasetPaths:
    """Tars without headers would do for the packer: it reads by offset alone."""
    paths, random = DatasetPaths(root), np.random.default_rng(0)
    noise = random.bytes(4 * mean_bytes)
    kept, balanced = [], []
    for start in range(0, num_samples, PER_TAR):
        shard = f"part-{start // PER_TAR:05d}/images/00000.tar"
        (paths.crawl / shard).parent.mkdir(parents=True)
        with (paths.crawl / shard).open("wb") as file:
            for number in range(start, min(start + PER_TAR, num_samples)):
                size = int(random.integers(mean_bytes // 2, mean_bytes * 3 // 2))
                place = file.tell()
                begin = number * 977 % (2 * mean_bytes)
                file.write(b"\xff\xd8" + noise[begin : begin + size - 2])
                url = f"https://upload.example.org/wikipedia/commons/{number:08d}.jpg"
                row = candidate(url, f"A caption of about the usual length, number {number}")
                kept.append(row)
                balanced.append(
                    {
                        "uid": row["uid"],
                        "shard": shard,
                        "offset": place,
                        "size": size,
                        "width": 256,
                        "height": 256,
                        "original_width": 800,
                        "original_height": 600,
                        "sha256": hashlib.sha256(row["uid"].encode()).hexdigest(),
                        "caption": row["caption"],
                        "captions": [row["caption"]],
                        "query_ids": row["query_ids"],
                        "keep_probability": 0.25,
                    }
                )
    write_table(pa.Table.from_pylist(kept, KEPT), paths.table("kept"), KEPT)
    write_table(pa.Table.from_pylist(balanced, BALANCED), paths.table("balanced"), BALANCED)
    query = {"query_id": 0, "query": "a", "folded": "a", "origin": "user"}
    write_table(pa.Table.from_pylist([query], QUERIES), paths.table("queries"), QUERIES)
    return paths


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds, those of ended children included."""

    def cpu_s() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in used)

    began, began_cpu = time.perf_counter(), cpu_s()
    call()
    return time.perf_counter() - began, cpu_s() - began_cpu


def measure(folder: Path, num_samples: int, mean_bytes: int) -> list[str]:
    root = folder / "data"
    paths = write_crawl(root, num_samples, mean_bytes)
    job = DatasetJob(out_dir=str(root))
    rows = []
    for processes in (1, 2):
        job.pack.processes = processes
        with contextlib.redirect_stderr(io.StringIO()):
            wall_s, cpu_s = timed(lambda: pack.run(job, paths))
        size = load_manifest(paths.manifest).num_bytes
        rows.append(_row(f"pack, {processes} process(es)", mean_bytes, size, wall_s, cpu_s))
        shutil.rmtree(paths.shards)
        paths.manifest.unlink()
    copy = folder / "copy"
    command = ["cp", "-r", "--reflink=never", str(paths.crawl), str(copy)]
    wall_s, cpu_s = timed(lambda: subprocess.run(command, check=True, timeout=3600))
    size = sum(file.stat().st_size for file in copy.rglob("*.tar"))
    rows.append(_row("cp", mean_bytes, size, wall_s, cpu_s))
    block = os.urandom(1 << 24)
    wall_s, cpu_s = timed(lambda: [hashlib.sha256(block) for _ in range(16)])
    rows.append(_row("sha256 alone", mean_bytes, 16 << 24, wall_s, cpu_s))
    shutil.rmtree(copy)
    shutil.rmtree(root)
    return rows


def _row(name: str, mean_bytes: int, size: int, wall_s: float, cpu_s: float) -> str:
    row = (
        f"| {name} | {mean_bytes // 1000} kB | {size / 1e6:,.0f} | {wall_s:.2f} | "
        f"{size / 1e6 / wall_s:,.0f} | {size / 1e6 / max(cpu_s, 1e-9):,.0f} |"
    )
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-samples", type=int, default=60_000)
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    parser.add_argument("--write", action="store_true", help="put the table into results/pack.md")
    arguments = parser.parse_args()
    head = [
        "| what | mean image | MB | wall s | MB/s | MB per CPU-second |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(head))
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for mean_bytes in MEAN_BYTES:
            count = arguments.num_samples * MEAN_BYTES[0] // mean_bytes
            rows += measure(Path(folder), max(count, 1), mean_bytes)
    if arguments.write:
        title = (
            f"# Packing\n\n`python -m tests.benchmarks.bench_pack --num-samples "
            f"{arguments.num_samples}` on {platform.machine()}, {os.cpu_count()} CPUs, Python "
            f"{platform.python_version()}, load {os.getloadavg()[0]:.1f} at the end. The crawl "
            "was in the page cache for every row. Packing reads it at random, hashes and writes; "
            "`cp` reads in order and writes. CPU seconds are those of all processes.\n\n"
        )
        RESULTS.write_text(title + "\n".join(head + rows) + "\n")


if __name__ == "__main__":
    main()
