"""Settings of the search servers. Keys are not among them: they come from environment variables,
so that no file of a job holds one.

What the terms of a server say of building a data set is here too: some ask for a permission, which
is then a setting, and goes on to the data set's card.
"""

from bisect import bisect
from dataclasses import dataclass, field
from typing import Any, Optional

from data_tools.ground.fields import (
    at_least,
    between,
    hashed_as,
    not_empty,
    null_hashed_as,
    out_of_bounds,
)

# Why a server may only be asked by who has a permission (sources.NAME.permission).
PERMISSION_NEEDED = {
    "openverse": (
        'the terms say "you must not scrape the content in the Openverse Catalog" '
        "(docs.openverse.org/terms_of_service.html); the Openverse team grants exceptions"
    ),
    "flickr": (
        "an API key is for non-commercial use unless Flickr agreed to more, and every owner's "
        "licence is to be respected (www.flickr.com/help/terms/api)"
    ),
    "brave": (
        "only plans whose licence grants storage and AI use allow results to be kept "
        "(brave.com/search/api)"
    ),
}
# https://www.mediawiki.org/wiki/Common_thumbnail_sizes. A request for another width is refused by
# upload.wikimedia.org, or answered with the next larger one.
THUMBNAIL_WIDTHS = (20, 40, 60, 120, 250, 330, 500, 960, 1280, 1920, 3840)


@dataclass(kw_only=True, slots=True)
class CommonsConfig:
    """Wikimedia Commons search (or any server that speaks its API)."""

    enabled: bool = False
    """Ask this server."""
    endpoint: str = "https://commons.wikimedia.org/w/api.php"
    """Address of the API."""
    requests_per_second: float = at_least(0.001, default=2.0)
    """Requests per second over all connections. Commons asks for modest use; the demo's local
    server is asked faster."""
    concurrency: int = between(1, 3, default=3, advice="Commons allows 1 to 3 connections")
    """Simultaneous connections; Commons' etiquette allows 3 at most."""
    page_size: int = between(1, 50, default=50)
    """Results per request; Commons renders at most 50 thumbnails per request."""
    thumbnail_width: Optional[int] = hashed_as(
        {None: 0, 500: 512},  # 512 was the default before; Commons made 960 pixels of it
        at_least(1, default=500, null="asks for the original files"),
    )
    """Width of the thumbnails that are asked for, in pixels: 20, 40, 60, 120, 250, 330, 500, 960,
    1280, 1920 or 3840, which Commons makes. Files that are no wider are fetched as they are. Null
    asks for the original files, which costs upload.wikimedia.org more."""


@dataclass(kw_only=True, slots=True)
class OpenverseConfig:
    """Openverse. OPENVERSE_CLIENT_ID and OPENVERSE_CLIENT_SECRET in the environment raise its
    limits; without them it is asked anonymously."""

    enabled: bool = False
    """Ask this server."""
    endpoint: str = "https://api.openverse.org/v1/"
    """Address of the API."""
    permission: str = ""
    """Who granted what, and when; the data set's card shows it."""
    requests_per_second: float = at_least(0.001, default=1.5)
    """Requests per second over all connections. A key has 100 requests a minute."""
    results_per_query: int = between(1, 10_000, default=240)
    """The server's cap; more only by grant."""
    license_type: Optional[str] = null_hashed_as("", not_empty(default=None))
    """One of commercial, modification and all-cc; of several, joined by commas, all must hold. Null
    allows every licence."""


@dataclass(kw_only=True, slots=True)
class FlickrConfig:
    """Flickr; the key is in the environment variable FLICKR_API_KEY."""

    enabled: bool = False
    """Ask this server."""
    endpoint: str = "https://api.flickr.com/services/rest/"
    """Address of the API."""
    permission: str = ""
    """Who granted what, and when; the data set's card shows it."""
    requests_per_second: float = at_least(0.001, default=1.0)
    """Requests per second over all connections. A key has 3,600 requests an hour."""
    licenses: list[int] = field(default_factory=list)
    """Ids as flickr.photos.licenses.getInfo lists them. Empty: all but 0, All Rights Reserved."""


@dataclass(kw_only=True, slots=True)
class BraveConfig:
    """Brave image search; the key is in the environment variable BRAVE_API_KEY."""

    enabled: bool = False
    """Ask this server."""
    endpoint: str = "https://api.search.brave.com/res/v1/images/search"
    """Address of the API."""
    permission: str = ""
    """The plan, and that its licence grants storage and AI use; the data set's card shows it."""
    requests_per_second: float = at_least(0.001, default=1.0)
    """As the plan allows; what the server's answers say of its windows is obeyed beside it."""
    country: str = "ALL"
    """Country that results are for, as Brave's API names it."""
    search_lang: str = "en"
    """Language of the search, as Brave's API names it."""


@dataclass(kw_only=True, slots=True)
class SearxngConfig:
    """A SearXNG instance of one's own. It asks search engines that permit none of this: whoever
    runs it answers for that."""

    enabled: bool = False
    """Ask this server."""
    endpoint: str = ""
    """Address of the instance; its settings.yml must have json in search.formats."""
    requests_per_second: float = at_least(0.001, default=0.5)
    """Each request becomes one to every engine that the instance asks."""
    max_pages: int = at_least(1, default=10)
    """Pages asked for a query at most: what an engine gives beyond is repeated or off the mark."""
    language: str = "en"
    """Language of the search, as SearXNG names it."""


def commons_problems(config: CommonsConfig) -> list[str]:
    name = "sources.commons"
    found = _server_problems(name, config)
    width = config.thumbnail_width
    if width is not None and width >= 1 and width not in THUMBNAIL_WIDTHS:
        at = bisect(THUMBNAIL_WIDTHS, width)
        nearest = " or ".join(map(str, THUMBNAIL_WIDTHS[max(0, at - 1) : at + 1]))
        found.append(
            f"{name}.thumbnail_width = {width}: Commons makes thumbnails of certain widths only "
            f"(www.mediawiki.org/wiki/Common_thumbnail_sizes); give {nearest}; null asks for the "
            "original files"
        )
    return found


def openverse_problems(config: OpenverseConfig) -> list[str]:
    name = "sources.openverse"
    found = _server_problems(name, config)
    if not config.endpoint.endswith("/"):
        found.append(f"{name}.endpoint = {config.endpoint}: must end with /")
    return found + _permission_problems("openverse", config.permission)


def flickr_problems(config: FlickrConfig) -> list[str]:
    name = "sources.flickr"
    found = _server_problems(name, config)
    if any(number < 0 for number in config.licenses):
        found.append(f"{name}.licenses = {config.licenses}: give ids of 0 or more")
    return found + _permission_problems("flickr", config.permission)


def brave_problems(config: BraveConfig) -> list[str]:
    found = _server_problems("sources.brave", config)
    return found + _permission_problems("brave", config.permission)


def searxng_problems(config: SearxngConfig) -> list[str]:
    name = "sources.searxng"
    if not config.endpoint:
        return [f"{name}.endpoint is not given: add {name}.endpoint=http://127.0.0.1:8080/"]
    return _server_problems(name, config)


def _server_problems(name: str, config: Any) -> list[str]:
    """Bounds and address of one server's settings."""
    endpoint = config.endpoint
    found = out_of_bounds(config, name)
    if not endpoint.startswith(("http://", "https://")):
        found.append(f"{name}.endpoint = {endpoint}: give an http(s) URL")
    return found


def _permission_problems(source: str, permission: str) -> list[str]:
    if permission.strip():
        return []
    return [
        f"sources.{source}.permission is empty: {PERMISSION_NEEDED[source]}; if you may, say so: "
        f"add 'sources.{source}.permission=\"who granted what, and when\"'"
    ]
