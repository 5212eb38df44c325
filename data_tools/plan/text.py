"""The plan as text: the pairs, the searches, the download."""

from __future__ import annotations

from collections.abc import Sequence

from data_tools.config import DatasetJob
from data_tools.plan.figures import DownloadPlan, PairsPlan, Plan, SearchCost, ServerPlan


def readable(job: DatasetJob, plan: Plan) -> str:
    """The plan as the text that `python -m data_tools.plan` prints."""
    is_kept = "queries" in plan.stages_done
    parts = [f"{plan.queries:,} queries" + ("" if is_kept else ", listed for this plan only")]
    parts += _pairs(job, plan.pairs) if plan.pairs else _no_pairs(job, plan)
    parts += _servers(job, plan.servers)
    if plan.download:
        parts += _download(job, plan.download)
    return "\n".join(parts)


def _no_pairs(job: DatasetJob, plan: Plan) -> list[str]:
    if job.sources.pool.enabled:
        why = (
            "the match stage is not done with these settings: run python -m data_tools.build "
            "--stage match"
        )
    else:
        why = "no pool is enabled, and the search stage is not done (source=[commons,pool])"
    return ["", "Pairs: not known; " + why]


def _pairs(job: DatasetJob, pairs: PairsPlan) -> list[str]:
    s = job.balance.expected_survival
    spread = ", ".join(f"{name} {_count(value)}" for name, value in pairs.per_query.items())
    survival = (
        f"{s:.1%} expected to survive crawl and curation"
        if s < 1
        else "taken as if every link lived: give balance.expected_survival"
    )
    rows = [
        ("pairs found", f"{pairs.pairs:,}", f"{pairs.queries_per_pair:.2f} queries each"),
        ("pairs per query", f"{pairs.per_query['mean']:,.1f}", spread),
        ("queries without a pair", f"{pairs.queries_without_pairs:,}", ""),
        (
            f"capped at t = {pairs.max_per_query:,}",
            f"{pairs.capped_queries:,}",
            f"the others have {pairs.tail_share:.1%} of the matches",
        ),
        ("kept by balancing", f"{pairs.expected_kept:,.0f}", _share(pairs)),
        ("left after the crawl", f"{pairs.expected_survivors:,.0f}", survival),
        (
            "queries short of t",
            f"{pairs.short_queries:,}",
            f"{pairs.short_pairs:,} pairs are missing to t; search gives {pairs.fillable_pairs:,} "
            "at most",
        ),
    ]
    if pairs.pool_rows:
        share = f"{pairs.matched_share:.1%} match a query"
        rows.insert(0, ("rows in the pools", f"{pairs.pool_rows:,}", share))
    return ["", f"Pairs, counted from {pairs.counted_from}", *_aligned(rows, numbers={1})]


def _share(pairs: PairsPlan) -> str:
    share = f"{pairs.expected_kept / pairs.pairs:.1%} of those found" if pairs.pairs else ""
    return f"{share}, expected"


def _servers(job: DatasetJob, servers: Sequence[ServerPlan]) -> list[str]:
    if not servers:
        return ["", "Search: no server is enabled"]
    lines = ["", f"Search, at most {job.search.limit_per_query} results per query"]
    header = ("", "queries", "requests", "time", "USD", "results, at most")
    rows: list[Sequence[str]] = [header]
    for server in servers:
        rows.append((f"{server.name}, every query", *_cost(server.all)))
        if server.short is not None:
            rows.append((f"{server.name}, deficit_only", *_cost(server.short)))
    lines += _aligned(rows, numbers={1, 2, 3, 4, 5})
    lines += [
        f"  {server.name}: {server.results_per_query} results per query in pages of "
        f"{server.page_size}; terms: {server.terms}"
        for server in servers
    ]
    asked = "the short ones (search.deficit_only=true)" if job.search.deficit_only else "every one"
    return [*lines, f"  this job asks {asked}"]


def _cost(cost: SearchCost) -> tuple[str, ...]:
    usd = "-" if cost.usd is None else f"{cost.usd:,.0f}"
    return (
        f"{cost.queries:,}",
        f"{cost.requests:,}",
        _duration(cost.days),
        usd,
        f"{cost.results:,}",
    )


def _download(job: DatasetJob, download: DownloadPlan) -> list[str]:
    pace = f"{job.crawl.processes} processes of {job.plan.images_per_s_per_core:g} images/s"
    rows = [
        ("images to fetch", f"{download.pairs:,.0f}", ""),
        ("download", _bytes(download.bytes), f"{download.megabits_per_s:,.0f} Mbit/s"),
        (
            "shards",
            _bytes(download.disk_bytes),
            f"at {job.crawl.image_size} px, and as much again in crawl/ until it is deleted",
        ),
        ("time", _duration(download.days), f"{pace}; N array tasks take 1/N of it"),
    ]
    return ["", "Download of what the counts above keep", *_aligned(rows, numbers={1})]


def _aligned(rows: Sequence[Sequence[str]], numbers: set[int]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        (
            "  "
            + "  ".join(
                cell.rjust(width) if column in numbers else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths))
            )
        ).rstrip()
        for row in rows
    ]


def _count(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def _duration(days: float) -> str:
    if days >= 1:
        return f"{days:,.0f} days" if days >= 100 else f"{days:.1f} days"
    minutes = days * 24 * 60
    return f"{minutes / 60:.1f} h" if minutes >= 60 else f"{minutes:.1f} min"


def _bytes(number: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:,.1f} {unit}"
    return f"{number / 1e3:,.1f} kB"
