"""Settings of the sources of (url, caption): search servers and pools."""

from dataclasses import dataclass, field

from data_tools.config.problems import below


@dataclass(kw_only=True, slots=True)
class CommonsConfig:
    """Wikimedia Commons search (or any server that speaks its API)."""

    enabled: bool = False
    endpoint: str = "https://commons.wikimedia.org/w/api.php"
    requests_per_second: float = 2.0
    """Over all connections. Commons asks for modest use; the demo's local server is asked
    faster."""
    concurrency: int = 3
    """Connections at a time; Commons' etiquette allows 3 at most."""
    page_size: int = 50
    """Results a request asks for; Commons renders at most 50 thumbnails a request."""
    thumbnail_width: int = 512
    """Pixels; thumbnails spare upload.wikimedia.org. 0 asks for the original files."""


@dataclass(kw_only=True, slots=True)
class PoolConfig:
    """Tables of (url, caption) at hand: parquet, csv, tsv or jsonl, also .gz."""

    enabled: bool = False
    paths: list[str] = field(default_factory=list)
    """Files or glob patterns."""
    url_column: str = "url"
    caption_column: str = "caption"
    license: str = ""
    """Written into every candidate of the pool, as the pool's publisher states it; empty =
    unknown."""


@dataclass(kw_only=True, slots=True)
class SourcesConfig:
    contact: str = ""
    """E-mail address or URL of the person responsible, sent in the User-Agent of every request to
    the outside."""
    timeout_s: float = 30.0
    """For one request, connect and read."""
    max_attempts: int = 6
    """Of one request; a server's Retry-After is obeyed in between."""
    commons: CommonsConfig = field(default_factory=CommonsConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)


def problems(config: SourcesConfig) -> list[str]:
    found = below(
        [
            ("sources.timeout_s", config.timeout_s, 0.1),
            ("sources.max_attempts", config.max_attempts, 1),
        ]
    )
    if not (config.commons.enabled or config.pool.enabled):
        found.append(
            "sources: none is enabled; add source=commons, source=pool or source=[commons,pool]"
        )
    if not config.contact:
        found.append(
            "sources.contact is empty: search servers and image sites may ask who is calling; add "
            "sources.contact=you@example.org"
        )
    if config.commons.enabled:
        found += _commons_problems(config.commons)
    if config.pool.enabled and not config.pool.paths:
        found.append("sources.pool.paths is empty: add 'sources.pool.paths=[pool/*.parquet]'")
    return found


def _commons_problems(config: CommonsConfig) -> list[str]:
    name = "sources.commons"
    found = below([(f"{name}.requests_per_second", config.requests_per_second, 0.01)])
    if not config.endpoint.startswith(("http://", "https://")):
        found.append(f"{name}.endpoint = {config.endpoint}: give an http(s) URL")
    if not 1 <= config.concurrency <= 3:
        found.append(
            f"{name}.concurrency = {config.concurrency}: Commons allows 1 to 3 connections"
        )
    if not 1 <= config.page_size <= 50:
        found.append(f"{name}.page_size = {config.page_size}: give 1 to 50")
    return found
