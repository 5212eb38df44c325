"""How much each search server gives at most, how often it may be asked, and what that costs.

The numbers are known before anything is asked: the sources set their pace by them, and `plan`
computes requests, days and money from them. They were read in the servers' documentation and source
code in November 2026; quotas in the headers of an answer overrule them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from data_tools.config import (
    BraveConfig,
    CommonsConfig,
    FlickrConfig,
    OpenverseConfig,
    SearxngConfig,
    SourcesConfig,
)
from data_tools.config.sources import servers_enabled

DAY_S = 86400
OPENVERSE_KEYS = ("OPENVERSE_CLIENT_ID", "OPENVERSE_CLIENT_SECRET")
# Commons serves 500 results per request, but only 50 thumbnails; its search window is 10,000.
COMMONS_MAX_PAGE_SIZE, COMMONS_MAX_RESULTS = 50, 10_000
# An anonymous page of more than 20 is answered with 401; with a key 500 are allowed.
OPENVERSE_PAGE_SIZE_ANONYMOUS, OPENVERSE_PAGE_SIZE = 20, 500
# Beyond about 4,000 results Flickr repeats its pages. Windows of the upload date, down to one
# second, have 4,000 results each, so that only its limit caps a query. The pages of halved windows
# make a fifth more requests than `pages` says.
FLICKR_PAGE_SIZE, FLICKR_MAX_RESULTS = 500, 10_000_000
BRAVE_MAX_RESULTS = 200  # in one answer, and there is no second page
# An estimate: engines behind SearXNG give different numbers of images per page.
SEARXNG_PAGE_SIZE = 30


@dataclass(frozen=True)
class SourceLimits:
    """Limits of one server. None: no such limit, or no price, is known."""

    page_size: int
    """Maximum number of results per request."""
    max_per_query: int
    """Maximum number of results per query, over all its pages."""
    requests_per_s: float
    """The pace that the job's configuration sets."""
    requests_per_minute: int | None = None
    requests_per_hour: int | None = None
    requests_per_day: int | None = None
    usd_per_1000: float | None = None
    """Price of 1,000 requests."""
    terms: str = ""
    """What the server's terms say about collecting a data set from it."""

    def quotas(self) -> list[tuple[int, float]]:
        """(number of requests, window in seconds) of every limit other than the pace."""
        windows = (
            (self.requests_per_minute, 60.0),
            (self.requests_per_hour, 3600.0),
            (self.requests_per_day, float(DAY_S)),
        )
        return [(number, window_s) for number, window_s in windows if number is not None]

    def pages(self, wanted: int) -> int:
        """Maximum number of requests for `wanted` results of one query."""
        return -(-min(wanted, self.max_per_query) // self.page_size)

    def days(self, num_requests: int) -> float:
        """Days that the requests take at the tightest of all limits, without pauses."""
        per_day = [self.requests_per_s * DAY_S]
        per_day += [number * DAY_S / window_s for number, window_s in self.quotas()]
        return num_requests / min(per_day)

    def usd(self, num_requests: int) -> float | None:
        """Price of the requests in US dollars; None if no price is known."""
        return None if self.usd_per_1000 is None else num_requests / 1000 * self.usd_per_1000


def limits(config: SourcesConfig) -> dict[str, SourceLimits]:
    """Name -> limits of every enabled search server, in the order in which they are asked."""
    every = {
        "commons": commons_limits(config.commons),
        "openverse": openverse_limits(config.openverse, has_openverse_key()),
        "flickr": flickr_limits(config.flickr),
        "brave": brave_limits(config.brave),
        "searxng": searxng_limits(config.searxng),
    }
    return {name: every[name] for name in servers_enabled(config)}


def has_openverse_key() -> bool:
    """Whether the environment has client id and secret of Openverse."""
    return all(os.environ.get(name, "").strip() for name in OPENVERSE_KEYS)


def commons_limits(config: CommonsConfig) -> SourceLimits:
    return SourceLimits(
        page_size=config.page_size,
        max_per_query=COMMONS_MAX_RESULTS,
        requests_per_s=config.requests_per_second,
        terms="allowed with etiquette: a contact, 3 connections, Retry-After obeyed",
    )


def openverse_limits(config: OpenverseConfig, has_key: bool) -> SourceLimits:
    """The server's code allows 5 requests per hour and 100 per day without a key, 100 per minute
    and 10,000 per day with one."""
    return SourceLimits(
        page_size=OPENVERSE_PAGE_SIZE if has_key else OPENVERSE_PAGE_SIZE_ANONYMOUS,
        max_per_query=config.results_per_query,
        requests_per_s=config.requests_per_second,
        requests_per_minute=100 if has_key else None,
        requests_per_hour=None if has_key else 5,
        requests_per_day=10_000 if has_key else 100,
        terms="no scraping of the catalogue; exceptions by grant only",
    )


def flickr_limits(config: FlickrConfig) -> SourceLimits:
    return SourceLimits(
        page_size=FLICKR_PAGE_SIZE,
        max_per_query=FLICKR_MAX_RESULTS,
        requests_per_s=config.requests_per_second,
        requests_per_hour=3600,
        terms="a key is for non-commercial use; every owner's licence holds",
    )


def brave_limits(config: BraveConfig) -> SourceLimits:
    """Its windows depend on the plan, and every answer states them; the price is that of the plans
    with storage rights."""
    return SourceLimits(
        page_size=BRAVE_MAX_RESULTS,
        max_per_query=BRAVE_MAX_RESULTS,
        requests_per_s=config.requests_per_second,
        usd_per_1000=5.0,
        terms="only plans whose licence grants storage and AI use",
    )


def searxng_limits(config: SearxngConfig) -> SourceLimits:
    """The page size is an estimate; `max_per_query` follows from it."""
    return SourceLimits(
        page_size=SEARXNG_PAGE_SIZE,
        max_per_query=SEARXNG_PAGE_SIZE * config.max_pages,
        requests_per_s=config.requests_per_second,
        terms="it asks engines that permit none of this; its operator answers for it",
    )
