"""What `data_tools.plan.estimate` finds: the contents of plan.json."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class SearchCost:
    """Of asking one server for a number of queries; all but `terms` upper bounds."""

    queries: int
    requests: int
    days: float
    usd: float | None
    results: int


@dataclass(frozen=True)
class ServerPlan:
    """`short` is None where it is not known which queries are."""

    name: str
    page_size: int
    results_per_query: int
    terms: str
    all: SearchCost
    short: SearchCost | None


@dataclass(frozen=True)
class PairsPlan:
    """What is known of the pairs: of the pools, or after `candidates` of all sources."""

    counted_from: str
    pool_rows: int
    pairs: int
    matched_share: float
    queries_per_pair: float
    queries_without_pairs: int
    per_query: dict[str, float]
    """Quantiles and mean of the pairs of a query."""
    max_per_query: int
    capped_queries: int
    tail_share: float
    expected_kept: float
    expected_survivors: float
    short_queries: int
    short_pairs: int
    """Sum of what they lack to t."""
    fillable_pairs: int
    """Of these, what the servers' limits allow to be found."""


@dataclass(frozen=True)
class DownloadPlan:
    """Of one machine with crawl.processes; N tasks of a Slurm array take an N-th of the days."""

    pairs: float
    bytes: float
    disk_bytes: float
    """Of the shards. The crawl's own archives take as much again until they are deleted."""
    days: float
    megabits_per_s: float


@dataclass(frozen=True)
class Plan:
    queries: int
    stages_done: list[str]
    pairs: PairsPlan | None
    servers: list[ServerPlan] = field(default_factory=list)
    download: DownloadPlan | None = None
