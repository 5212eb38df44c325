"""Time, memory and recall of the search for near duplicates among many 64-bit hashes.

    python -m tests.benchmarks.bench_near_duplicates [--num-hashes 10000000] [--bits 3] [--write]

Random hashes, and for one in a hundred a copy with 1 to `bits` bits flipped. Every planted pair
must be found. --write puts the line into tests/benchmarks/results/near_duplicates.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.curate.near_duplicates import Nearness, block_masks, group_near
from data_tools.tables.scratch import MEMORY_LIMIT, scratch_database

RESULTS = Path(__file__).with_name("results") / "near_duplicates.md"
PLANTED_SHARE = 100


def plant(num_hashes: int, bits: int, target: Path) -> tuple[np.ndarray, np.ndarray]:
    """Write (id, hash, red, green, blue) as parquet; returns ids of planted pairs."""
    random = np.random.default_rng(0)
    num_copies = max(num_hashes // PLANTED_SHARE, 1)
    hashes = random.integers(0, 2**64, num_hashes - num_copies, dtype=np.uint64)
    sources = random.choice(len(hashes), num_copies, replace=False)
    copies = hashes[sources]
    for _ in range(bits):
        copies = copies ^ (np.uint64(1) << random.integers(0, 64, num_copies, dtype=np.uint64))
    hashes = np.concatenate([hashes, copies])
    order = random.permutation(num_hashes)
    place = np.empty_like(order)
    place[order] = np.arange(num_hashes)
    zeros = np.zeros(num_hashes, np.uint8)
    colours = {name: zeros for name in ("red", "green", "blue")}
    ids = np.arange(num_hashes)
    pq.write_table(pa.table({"id": ids, "hash": hashes[order], **colours}), target)
    return place[sources], place[num_hashes - num_copies :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-hashes", type=int, default=10_000_000)
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to sort (default: a temporary folder)")
    parser.add_argument("--write", action="store_true", help="put the line into results/")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        source = Path(folder) / "hashes.parquet"
        left, right = plant(arguments.num_hashes, arguments.bits, source)
        before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        began = time.perf_counter()
        with scratch_database(Path(folder) / "work") as database:
            database.execute(f"CREATE TABLE nodes AS SELECT * FROM read_parquet('{source}')")
            ids, roots = group_near(database, "nodes", Nearness(arguments.bits, 0))
        wall_s = time.perf_counter() - began
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    group = np.arange(arguments.num_hashes)
    group[ids] = roots
    recall = float(np.mean(group[left] == group[right]))
    num_sorts = len(block_masks(arguments.num_hashes, arguments.bits))
    row = (
        f"| {arguments.num_hashes:,} | {arguments.bits} | "
        f"{num_sorts} | {wall_s:.1f} | {peak_mb:,.0f} | "
        f"{len(left):,} | {recall:.6f} | {len(ids) - len(left):,} |"
    )
    head = (
        "| hashes | bits | sorts | wall s | peak RSS MB | planted | recall | other pairs |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    print(f"{head}\n{row}\n(RSS before the search: {before_mb:,.0f} MB, of making the hashes)")
    if arguments.write:
        RESULTS.write_text(
            "# Near duplicates\n\n`python -m tests.benchmarks.bench_near_duplicates --num-hashes "
            f"{arguments.num_hashes} --bits {arguments.bits}` on {platform.machine()}, "
            f"{os.cpu_count()} CPUs, Python {platform.python_version()}, load "
            f"{os.getloadavg()[0]:.1f} at the end; DuckDB may use "
            f"{MEMORY_LIMIT}. Making the hashes took {before_mb:,.0f} MB before.\n\n{head}\n{row}\n"
        )
    if recall < 1:
        raise SystemExit("planted pairs were missed")


if __name__ == "__main__":
    main()
