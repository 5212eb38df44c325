"""What a data set will cost, computed before any server is asked.

    python -m data_tools.plan queries.path=my_queries.txt out_dir=data/mine source=[commons,pool] \\
        'sources.pool.paths=[pool/*.parquet]' sources.contact=you@example.org

With the query list alone, which is built for the plan if no build has it yet, it prints requests,
days and money for every search server. After the match stage (python -m data_tools.build --stage
match) it also prints how many pairs each query will have, which queries have fewer than t, what it
costs to search for those only (search.deficit_only=true), and how much will be downloaded after
balancing. Writes plan.json and short_queries.parquet below out_dir.

The numbers of requests are upper bounds: a query with fewer results takes fewer pages. Bytes and
speed of the download are published figures (data_tools/config/plan.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa

from data_tools import balance, build, match
from data_tools.config import CONFIGURATION, ConfigError, DatasetJob, load_job
from data_tools.ground.aside import write_text_aside
from data_tools.ground.command_line import run
from data_tools.ground.settings import Command, NoSettings
from data_tools.plan.figures import DownloadPlan, PairsPlan, Plan, SearchCost, ServerPlan
from data_tools.plan.text import readable
from data_tools.search.limits import SourceLimits, limits
from data_tools.tables.schema import QUERIES, DataError, DatasetPaths, read_table, write_table

# Queries that found fewer than t pairs; those that lack most come first.
SHORT_QUERIES = pa.schema(
    [
        ("query_id", pa.int32()),
        ("query", pa.string()),
        ("found", pa.int64()),
        ("short", pa.int64()),
    ]
)


def make_plan(job: DatasetJob, paths: DatasetPaths) -> Plan:
    """Compute the plan from the tables in `paths`; no server is asked. Raises DataError if the
    query list cannot be read."""
    done = _finished_stages(job, paths)
    num_queries = _num_queries(job, paths, "queries" in done)
    pairs, short = None, None
    if "candidates" in done or (job.sources.pool.enabled and "match" in done):
        counted = _count(job, paths, "candidates" in done, num_queries)
        short = np.maximum(0, counted.decision.max_per_query - counted.counts)
        pairs = _pairs_plan(job, counted, short, done)
        _write_short(paths, counted.counts, short)
    servers = _server_plans(job, num_queries, None if short is None else int((short > 0).sum()))
    download = _download_plan(job, pairs.expected_kept) if pairs else None
    return Plan(num_queries, list(done), pairs, servers, download)


def _num_queries(job: DatasetJob, paths: DatasetPaths, built: bool) -> int:
    """The length of the query list. One that no build has made is made and thrown away: a plan must
    not replace the list that the other tables of a folder belong to."""
    if built:
        return read_table(paths.table("queries"), QUERIES).num_rows
    paths.root.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".plan.", dir=paths.root) as folder:
        return build.STAGES[0].run(job, DatasetPaths(Path(folder)))["queries"]


def _finished_stages(job: DatasetJob, paths: DatasetPaths) -> dict[str, dict[str, int]]:
    """Stage -> counts, for the stages that are done with these settings, up to the first that is
    not."""
    done: dict[str, dict[str, int]] = {}
    for stage, chain in build.chained(job):
        counts = build.finished(paths, stage, chain)
        if counts is None:
            break
        done[stage.name] = counts
    return done


@dataclass(frozen=True)
class _Counted:
    counts: np.ndarray
    """int64 (num_queries,): distinct pairs per query."""
    decision: balance.Decision
    repeats: float
    """Rows of the tables per distinct pair."""
    source: str
    """Where the pairs come from, for the text."""


def _count(job: DatasetJob, paths: DatasetPaths, merged: bool, num_queries: int) -> _Counted:
    """Count pairs and decide how to balance them. The tables of several pool files can repeat a
    pair; `counts` counts it once, and sums over rows are to be divided by `repeats`."""
    tables = [paths.table("candidates")] if merged else sorted(paths.matched.glob("*.parquet"))

    def batches() -> Iterator[pa.Array]:
        return balance.id_batches(tables)

    rows = np.zeros(num_queries, np.int64)
    matches = balance.count_per_query(batches())
    rows[: len(matches)] = matches
    counts = rows if merged else match.counts_per_query(paths, num_queries)
    decision = balance.decide(counts, batches, job.balance)
    repeats = float(rows.sum() / counts.sum()) if counts.sum() else 1.0
    return _Counted(counts, decision, repeats, "all sources" if merged else "pools")


def _pairs_plan(
    job: DatasetJob, counted: _Counted, short: np.ndarray, done: dict[str, dict[str, int]]
) -> PairsPlan:
    counts, decision = counted.counts, counted.decision
    pairs = round(decision.candidates / counted.repeats)
    pool = done.get("match", {})
    read, matched = pool.get("pool_rows", 0), pool.get("matched", 0)
    kept = decision.expected_kept / counted.repeats
    gain = sum(_results_per_query(job).values())
    quantiles = np.quantile(counts, [0.1, 0.5, 0.9]) if len(counts) else np.zeros(3)
    return PairsPlan(
        counted_from=counted.source,
        pool_rows=read,
        pairs=pairs,
        matched_share=matched / read if read else 0.0,
        queries_per_pair=float(counts.sum() / pairs) if pairs else 0.0,
        queries_without_pairs=int((counts == 0).sum()),
        per_query={
            **dict(zip(("10 %", "50 %", "90 %"), quantiles.tolist())),
            "mean": float(counts.mean()) if len(counts) else 0.0,
            "most": float(counts.max(initial=0)),
        },
        max_per_query=decision.max_per_query,
        capped_queries=decision.capped_queries,
        tail_share=decision.tail_share,
        expected_kept=kept,
        expected_survivors=kept * job.balance.expected_survival,
        short_queries=int((short > 0).sum()),
        short_pairs=int(short.sum()),
        fillable_pairs=int(np.minimum(short, gain).sum()),
    )


def _results_per_query(job: DatasetJob) -> dict[str, int]:
    wanted = job.search.limit_per_query
    return {name: min(wanted, each.max_per_query) for name, each in limits(job.sources).items()}


def _server_plans(job: DatasetJob, num_queries: int, num_short: int | None) -> list[ServerPlan]:
    results = _results_per_query(job)
    return [
        ServerPlan(
            name=name,
            page_size=server.page_size,
            results_per_query=results[name],
            terms=server.terms,
            all=_cost(server, num_queries, results[name]),
            short=None if num_short is None else _cost(server, num_short, results[name]),
        )
        for name, server in limits(job.sources).items()
    ]


def _cost(server: SourceLimits, asked: int, results: int) -> SearchCost:
    requests = asked * server.pages(results)
    return SearchCost(asked, requests, server.days(requests), server.usd(requests), asked * results)


def _download_plan(job: DatasetJob, pairs: float) -> DownloadPlan:
    config = job.plan
    images_per_s = config.images_per_s_per_core * job.crawl.processes
    area = (job.crawl.image_size / 256) ** 2
    return DownloadPlan(
        pairs=pairs,
        bytes=pairs * config.download_bytes_per_pair,
        disk_bytes=pairs * job.balance.expected_survival * config.disk_bytes_per_pair * area,
        days=pairs / images_per_s / 86400,
        megabits_per_s=images_per_s * config.download_bytes_per_pair * 8 / 1e6,
    )


def _write_short(paths: DatasetPaths, counts: np.ndarray, short: np.ndarray) -> None:
    table = read_table(paths.table("queries"), QUERIES).select(["query_id", "query"])
    table = table.append_column("found", pa.array(counts)).append_column("short", pa.array(short))
    order = np.argsort(-short, kind="stable")[: int((short > 0).sum())]
    write_table(table.take(pa.array(order)), short_queries_path(paths), SHORT_QUERIES)


def short_queries_path(paths: DatasetPaths) -> Path:
    """The table of the queries with fewer than t pairs."""
    return paths.root / "short_queries.parquet"


def write_plan(plan: Plan, paths: DatasetPaths) -> Path:
    """Write plan.json; returns its path."""
    path = paths.root / "plan.json"
    write_text_aside(path, json.dumps(asdict(plan), indent=2) + "\n")
    return path


COMMAND = Command(
    name="data_tools.plan",
    purpose="What a data set will cost, before any server is asked: requests, days and money of "
    "every search server and, after `python -m data_tools.build --stage match`, the pairs of each "
    "query and the size of the download. Writes plan.json and short_queries.parquet below out_dir.",
    settings=NoSettings,
    example="queries.path=my_queries.txt out_dir=data/mine source=commons "
    "sources.contact=you@example.org",
    configuration=CONFIGURATION,
    refused_by=(ConfigError,),
    failed_by=(DataError, OSError),
)


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    return run(COMMAND, arguments, _plan)


def _plan(_: NoSettings, overrides: list[str]) -> None:
    job = load_job(overrides)
    paths = DatasetPaths(Path(job.out_dir))
    plan = make_plan(job, paths)
    written = write_plan(plan, paths)  # first: whoever reads the print may stop (`| head`)
    print(readable(job, plan))
    print(f"\nwritten to {written}")
    if plan.pairs and plan.pairs.short_queries:
        print(f"queries short of t: {short_queries_path(paths)}")
