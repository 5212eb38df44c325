"""Captions a second on one core, from parquet to parquet, beside the published way of MetaCLIP.

    python -m tests.benchmarks.bench_match [--captions 1000000] [--queries 500000] [--repeats 5]
        [--write]

"published" is our restatement of what the paper and its documentation describe (arXiv 2309.16671,
section 3.2): a caption is padded with spaces, punctuation is set apart by spaces, and an automaton
of pyahocorasick over " query " is run on each caption, upper and lower case as they are. It reads
and writes parquet too (URL, caption, ids; no uid, no checks of rows). Both run on the same files,
in turn, each in a process of its own, and build their automaton before the clock starts. --write
puts the tables into tests/benchmarks/results/match.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import ahocorasick
import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.config import DatasetJob, PoolConfig
from data_tools.match import matcher, units
from data_tools.match.heads import Heads
from data_tools.match.pool import find_files
from data_tools.tables.schema import QUERIES, DatasetPaths, read_table
from tests.benchmarks.match_pool import english, queries_of, write_pool, write_queries

RESULTS = Path(__file__).with_name("results") / "match.md"
PROVIDERS = ("this project", "published")
PUNCTUATION = re.compile(r"([,.;:?!`])")
Measured = dict[str, Any]


def this_project(paths: DatasetPaths, pool: Path) -> Callable[[], int]:
    job = DatasetJob(out_dir=str(paths.root))
    job.sources.pool = PoolConfig(
        enabled=True, paths=[f"{pool}/*.parquet"], width_column="width", height_column="height"
    )
    queries = paths.table("queries")
    digest = units.queries_digest(queries, False)
    units._matcher(queries, digest, False)
    settings = units.MatchSettings(job.sources.pool, job.match, queries, digest)
    paths.matched.mkdir(parents=True, exist_ok=True)
    planned = units.plan_units(find_files(job.sources.pool), job.match.unit_bytes)

    def run() -> int:
        for unit in planned:
            units.match_unit(unit, settings, paths.matched)
        return sum(_num_matches(file) for file in paths.matched.glob("*.parquet"))

    return run


def published(paths: DatasetPaths, pool: Path) -> Callable[[], int]:
    automaton = ahocorasick.Automaton()
    for number, query in enumerate(
        read_table(paths.table("queries"), QUERIES)["folded"].to_pylist()
    ):
        automaton.add_word(f" {query} ", number)
    automaton.make_automaton()
    out = paths.root / "published.parquet"
    schema = pa.schema(
        [("url", pa.string()), ("caption", pa.string()), ("query_ids", pa.list_(pa.int32()))]
    )

    def run() -> int:
        num_matches = 0
        with pq.ParquetWriter(out, schema, compression="zstd") as writer:
            for file in sorted(pool.glob("*.parquet")):
                for batch in pq.ParquetFile(file).iter_batches(columns=["url", "caption"]):
                    rows = []
                    for url, caption in zip(batch["url"].to_pylist(), batch["caption"].to_pylist()):
                        spaced = PUNCTUATION.sub(r" \1 ", caption.replace("\t", " "))
                        text = f" {spaced.replace(chr(10), ' ')} "
                        found = sorted({number for _, number in automaton.iter(text)})
                        if found:
                            num_matches += len(found)
                            rows.append({"url": url, "caption": caption, "query_ids": found})
                    writer.write_table(pa.Table.from_pylist(rows, schema))
        return num_matches

    return run


def _num_matches(table: Path) -> int:
    return sum(
        len(ids) for ids in pq.read_table(table)["query_ids"].chunks for ids in [ids.flatten()]
    )


def measure(provider: str, folder: Path, stages: bool) -> Measured:
    """In a process of its own: what the provider takes."""
    pa.set_cpu_count(1)
    paths, pool = DatasetPaths(folder / "out"), folder / "pool"
    started = time.process_time()
    run = (this_project if provider == PROVIDERS[0] else published)(paths, pool)
    build_s = time.process_time() - started
    with _timed() if stages else _untimed() as seconds:
        wall, cpu = time.perf_counter(), time.process_time()
        num_matches = run()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    rows = sum(pq.read_metadata(file).num_rows for file in pool.glob("*.parquet"))
    return {
        "rows": rows,
        "matches": num_matches,
        "build_s": build_s,
        "wall_s": wall,
        "cpu_s": cpu,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "stages": dict(seconds),
    }


@contextmanager
def _untimed() -> Any:
    yield {}


@contextmanager
def _timed() -> Any:
    """CPU seconds by function; that of a function without those it calls that are timed too."""
    seconds: dict[str, float] = defaultdict(float)
    open_calls: list[float] = []

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            started = time.process_time()
            open_calls.append(0.0)
            try:
                return function(*arguments, **options)
            finally:
                taken = time.process_time() - started
                seconds[name] += taken - open_calls.pop()
                if open_calls:
                    open_calls[-1] += taken

        return call

    def spied(owner: Any, attribute: str, name: str) -> Any:
        return mock.patch.object(owner, attribute, timed(name, getattr(owner, attribute)))

    with (
        spied(units, "usable", "rows: UTF-8, nulls, URLs, white space"),
        spied(matcher.QueryMatcher, "match_many", "matches: distinct, sorted"),
        spied(matcher, "cut", "tokens: folding, bounds"),
        spied(matcher.QueryMatcher, "_known", "tokens: numbers"),
        spied(Heads, "near", "where a longer query may begin"),
        spied(matcher.QueryMatcher, "_find", "codes, automaton"),
        spied(units, "with_uids", "uid"),
        spied(units, "_as_candidates", "columns"),
        spied(pq.ParquetWriter, "write_table", "parquet written"),
        spied(units, "_candidates", "columns"),
    ):
        yield seconds


def in_own_process(provider: str, folder: Path, stages: bool = False) -> Measured:
    arguments = [
        sys.executable,
        "-m",
        __spec__.name,
        "--provider",
        provider,
        "--folder",
        str(folder),
    ]
    done = subprocess.run(
        [*arguments, *(["--stages"] if stages else [])],
        stdout=subprocess.PIPE,
        text=True,
        timeout=3600,
        check=True,
    )
    measured: Measured = json.loads(done.stdout.splitlines()[-1])
    return measured


def report(results: dict[str, list[Measured]], stages: Measured, asked: argparse.Namespace) -> str:
    lines = [
        "# Matching captions against queries",
        "",
        f"`python -m {__spec__.name} --captions {asked.captions} --queries {asked.queries} "
        f"--repeats {asked.repeats}`; {machine()}; load average {os.getloadavg()[0]:.1f} at the "
        "end.",
        "",
        "One core, parquet to parquet, automaton built beforehand. Median over the repeats, "
        "minimum and maximum in brackets. Memory is the peak of the process, Python included.",
        "",
        "| | captions/s (CPU time) | captions/s (wall) | matches per caption | build, s | memory |",
        "|---|---|---|---|---|---|",
    ]
    for provider, runs in results.items():
        rates = [
            _spread([run["rows"] / run[clock] for run in runs], "{:,.0f}")
            for clock in ("cpu_s", "wall_s")
        ]
        build = _spread([run["build_s"] for run in runs], "{:.1f}")
        memory = max(run["peak_bytes"] for run in runs) / 1e6
        per_caption = runs[0]["matches"] / runs[0]["rows"]
        cells = [provider, *rates, f"{per_caption:.2f}", build, f"{memory:,.0f} MB"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| where the time goes | us per caption |", "|---|---|"]
    accounted = dict(stages["stages"])
    accounted["parquet read, the rest"] = stages["cpu_s"] - sum(accounted.values())
    for name, seconds in sorted(accounted.items(), key=lambda item: -item[1]):
        lines.append(f"| {name} | {seconds / stages['rows'] * 1e6:.2f} |")
    return "\n".join(lines) + "\n"


def _spread(values: list[float], shown: str) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{shown.format(middle)} ({shown.format(low)} to {shown.format(high)})"


def machine() -> str:
    names = ("ahocorasick-rs", "pyahocorasick", "pyarrow", "numpy")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    processor = found[1] if found else platform.machine()
    return f"{processor}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--captions", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=500_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {RESULTS.name}")
    parser.add_argument("--provider", choices=PROVIDERS, help=argparse.SUPPRESS)
    parser.add_argument("--stages", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.provider:
        print(json.dumps(measure(asked.provider, asked.folder, asked.stages)))
        return
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        folder = Path(name)
        vocabulary = english()
        write_queries(DatasetPaths(folder / "out"), queries_of(vocabulary, asked.queries))
        for _ in write_pool(folder / "pool", vocabulary, asked.captions):
            pass
        results: dict[str, list[Measured]] = {provider: [] for provider in PROVIDERS}
        for _ in range(asked.repeats):
            for provider in PROVIDERS:
                results[provider].append(in_own_process(provider, folder))
        stages = in_own_process(PROVIDERS[0], folder, stages=True)
    text = report(results, stages, asked)
    print(text)
    if asked.write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(text)


if __name__ == "__main__":
    main()
