"""Settings of the sources of (url, caption): search servers and pools."""

import re
from dataclasses import dataclass, field

from data_tools.config import pool
from data_tools.config.pool import PoolConfig
from data_tools.config.servers import (
    PERMISSION_NEEDED,
    BraveConfig,
    CommonsConfig,
    FlickrConfig,
    OpenverseConfig,
    SearxngConfig,
    brave_problems,
    commons_problems,
    flickr_problems,
    openverse_problems,
    searxng_problems,
)
from data_tools.ground.fields import at_least, out_of_bounds


def reaches_somebody(contact: str) -> bool:
    """An e-mail address or URL is in it, and a header takes it."""
    is_line = contact.isascii() and contact.isprintable()
    return is_line and bool(re.search(r"[^\s@]+@[^\s@]+|https?://\S+", contact))


@dataclass(kw_only=True, slots=True)
class SourcesConfig:
    contact: str = ""
    """E-mail address or URL of the person responsible, sent in the User-Agent of every request to
    the outside."""
    timeout_s: float = at_least(0.1, default=30.0)
    """Seconds for one request, to connect and to read."""
    max_attempts: int = at_least(1, default=6)
    """Attempts per request; a server's Retry-After is obeyed in between."""
    max_wait_s: float = at_least(0, default=120.0)
    """The longest wait for a quota or a Retry-After. What needs longer ends the stage with all it
    found kept, and the time to run it again; 90000 waits through a daily quota."""
    commons: CommonsConfig = field(default_factory=CommonsConfig)
    """Wikimedia Commons."""
    openverse: OpenverseConfig = field(default_factory=OpenverseConfig)
    """Openverse."""
    flickr: FlickrConfig = field(default_factory=FlickrConfig)
    """Flickr."""
    brave: BraveConfig = field(default_factory=BraveConfig)
    """Brave image search."""
    searxng: SearxngConfig = field(default_factory=SearxngConfig)
    """A SearXNG instance."""
    pool: PoolConfig = field(default_factory=PoolConfig)
    """Tables of (url, caption) pairs."""


def problems(config: SourcesConfig) -> list[str]:
    groups = [f"sources.{name}" for name in ("pool", "commons", *PERMISSION_NEEDED, "searxng")]
    found = out_of_bounds(config, "sources", without=groups)  # each group has its own, if enabled
    if not (config.pool.enabled or servers_enabled(config)):
        found.append(
            "sources: none is enabled; add source=commons, source=pool or source=[commons,pool]"
        )
    if not config.contact:
        found.append(
            "sources.contact is empty: search servers and image sites may ask who is calling; add "
            "sources.contact=you@example.org"
        )
    elif not reaches_somebody(config.contact):
        found.append(
            f"sources.contact = {config.contact!r}: an e-mail address or URL, ASCII, one line"
        )
    found += _server_problems(config)
    return found + pool.problems(config.pool)


def servers_enabled(config: SourcesConfig) -> list[str]:
    """Names of the search servers that are asked, in the order in which they are."""
    return [
        name
        for name in ("commons", "openverse", "flickr", "brave", "searxng")
        if getattr(config, name).enabled
    ]


def _server_problems(config: SourcesConfig) -> list[str]:
    found = {
        "commons": commons_problems(config.commons),
        "openverse": openverse_problems(config.openverse),
        "flickr": flickr_problems(config.flickr),
        "brave": brave_problems(config.brave),
        "searxng": searxng_problems(config.searxng),
    }
    return [problem for name in servers_enabled(config) for problem in found[name]]
