"""Time and memory of match, merge and balance at N / 10 and N captions: linear and bounded.

    python -m tests.benchmarks.bench_pool_scale [--captions 10000000] [--queries 500000] [--write]

Synthetic pool files are written first (one process, streamed). Each stage then runs in a process of
its own, whose peak resident memory is given, Python included. --write puts the table into
tests/benchmarks/results/pool_scale.md.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_tools import balance, candidates, match
from data_tools.config import DatasetJob, PoolConfig
from data_tools.tables.schema import CANDIDATES, DatasetPaths, write_table
from tests.benchmarks.bench_match import machine
from tests.benchmarks.match_pool import english, queries_of, write_pool, write_queries

RESULTS = Path(__file__).with_name("results") / "pool_scale.md"
STAGES = {"match": match.run, "candidates": candidates.run, "balance": balance.run}
Measured = dict[str, Any]


def prepare(folder: Path, num_captions: int, num_queries: int) -> None:
    """Pool files, the queries table, and the empty table of a search that did not take place."""
    vocabulary, paths = english(), DatasetPaths(folder / "out")
    write_queries(paths, queries_of(vocabulary, num_queries))
    write_table(pa.Table.from_pylist([], CANDIDATES), paths.table("searched"), CANDIDATES)
    for _ in write_pool(folder / "pool", vocabulary, num_captions):
        pass


def run_stage(name: str, folder: Path, merge_memory_gb: float) -> Measured:
    """In this process; {"seconds", "peak_bytes", "counts", "num_bytes"}."""
    paths = DatasetPaths(folder / "out")
    job = DatasetJob(out_dir=str(paths.root))
    job.sources.pool = PoolConfig(
        enabled=True,
        paths=[f"{folder}/pool/*.parquet"],
        width_column="width",
        height_column="height",
    )
    job.match.merge_memory_gb = merge_memory_gb
    started = time.perf_counter()
    counts = STAGES[name](job, paths)
    return {
        "seconds": time.perf_counter() - started,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "counts": counts,
        "num_bytes": sum(f.stat().st_size for f in paths.root.rglob("*.parquet")),
    }


def in_own_process(name: str, folder: Path, merge_memory_gb: float = 2.0) -> Measured:
    arguments = ["--stage", name, "--folder", str(folder), "--memory-gb", str(merge_memory_gb)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.bench_pool_scale", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        timeout=6 * 3600,
        check=True,
    )
    measured: Measured = json.loads(done.stdout.splitlines()[-1])
    return measured


def report(sizes: list[int], results: dict[int, dict[str, Measured]], num_queries: int) -> str:
    small, large = sizes
    lines = [
        "# A pool through match, merge and balance",
        "",
        f"{num_queries:,} queries; {machine()}; load average {os.getloadavg()[0]:.1f} at the end. "
        "Memory is the peak of the stage's process.",
        "",
        f"| stage | {small:,} captions | memory | {large:,} captions | memory | time per caption |",
        "|---|---|---|---|---|---|",
    ]
    for name in STAGES:
        first, last = results[small][name], results[large][name]
        ratio = last["seconds"] / large / (first["seconds"] / small)
        cells = [name]
        for measured in (first, last):
            cells += [f"{measured['seconds']:,.1f} s", f"{measured['peak_bytes'] / 1e6:,.0f} MB"]
        lines.append(f"| {' | '.join([*cells, f'x {ratio:.2f}'])} |")
    last = results[large]["balance"]
    lines += ["", f"Tables of {large:,} captions: {last['num_bytes'] / 1e9:.2f} GB."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--captions", type=int, default=10_000_000)
    parser.add_argument("--queries", type=int, default=500_000)
    parser.add_argument("--memory-gb", type=float, default=2.0, help="match.merge_memory_gb")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    parser.add_argument("--write", action="store_true", help=f"put the table into {RESULTS.name}")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.stage:
        print(json.dumps(run_stage(asked.stage, asked.folder, asked.memory_gb)))
        return
    sizes = [max(asked.captions // 10, 1), asked.captions]
    results: dict[int, dict[str, Measured]] = {}
    for size in sizes:
        folder = Path(tempfile.mkdtemp(dir=asked.folder))
        try:
            prepare(folder, size, asked.queries)
            results[size] = {name: in_own_process(name, folder, asked.memory_gb) for name in STAGES}
        finally:
            shutil.rmtree(folder)
    text = report(sizes, results, asked.queries)
    print(text)
    if asked.write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(text)


if __name__ == "__main__":
    main()
