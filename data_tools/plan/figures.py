"""The figures that `data_tools.plan.estimate` computes: the content of plan.json."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class SearchCost:
    """What it costs to ask one server for a number of queries; upper bounds."""

    queries: int
    requests: int
    days: float
    usd: float | None
    """US dollars; None if no price is known."""
    results: int


@dataclass(frozen=True)
class ServerPlan:
    """The costs of one server, for all queries and for those with fewer than t pairs. `short` is
    None if these are not known yet."""

    name: str
    page_size: int
    results_per_query: int
    terms: str
    all: SearchCost
    short: SearchCost | None


@dataclass(frozen=True)
class PairsPlan:
    """Figures about the pairs of the pools, or, after the candidates stage, of all sources."""

    counted_from: str
    pool_rows: int
    pairs: int
    matched_share: float
    queries_per_pair: float
    queries_without_pairs: int
    per_query: dict[str, float]
    """Quantiles, mean and maximum of the number of pairs per query."""
    max_per_query: int
    capped_queries: int
    tail_share: float
    expected_kept: float
    expected_survivors: float
    short_queries: int
    short_pairs: int
    """Pairs that all queries together lack to reach t."""
    fillable_pairs: int
    """How many of `short_pairs` the servers' limits allow to be found."""


@dataclass(frozen=True)
class DownloadPlan:
    """The download on one machine with crawl.processes; N tasks of a Slurm array take 1/N of the
    days."""

    pairs: float
    bytes: float
    disk_bytes: float
    """Bytes of the shards. The crawl's own archives take as much again until they are deleted."""
    days: float
    megabits_per_s: float


@dataclass(frozen=True)
class Plan:
    """The content of plan.json. `pairs` and `download` are None before the match stage."""

    queries: int
    stages_done: list[str]
    pairs: PairsPlan | None
    servers: list[ServerPlan] = field(default_factory=list)
    download: DownloadPlan | None = None
