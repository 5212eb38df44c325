"""What a site says about being crawled: robots.txt (RFC 9309) and the X-Robots-Tag header."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict

from protego import Protego
from yarl import URL

from data_tools.crawl.fetch import Budget, Fetcher, FetchError

# RFC 9309: a crawler parses at least 500 KiB (2.5), keeps a robots.txt no longer than a day (2.4).
MAX_PARSED_BYTES = 512_000
MAX_ROBOTS_BYTES = 4_000_000
KEEP_S = 24 * 3600.0
MAX_HOSTS = 20_000
# img2dataset's default list, and `none`, which means noindex, nofollow.
_FORBIDDING_TAGS = {"noai", "noimageai", "noindex", "noimageindex", "none"}
# The directives that take a value of their own after a colon; any other "word:" names a crawler.
_VALUED_TAGS = {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"}


class RobotsGate:
    """Asks each origin for its robots.txt once a day, however many URLs wait for the answer.

    4xx (there is none) allows everything; 5xx and a file that can't be read forbid everything, as
    the RFC says. A host that can't be reached at all keeps its own reason (failed:dns), which tells
    the user more than "forbidden".
    """

    def __init__(self, fetcher: Fetcher, product: str, timeout_s: float) -> None:
        self._fetcher, self._product, self._timeout_s = fetcher, product, timeout_s
        self._origins: OrderedDict[str, tuple[float, asyncio.Task[Protego]]] = OrderedDict()

    async def check(self, url: URL) -> None:
        """FetchError "rejected:robots" where the site forbids this address."""
        rules = await asyncio.shield(self._rules_of(str(url.origin())))
        if not rules.can_fetch(str(url), self._product):
            raise FetchError(
                "rejected:robots", f"robots.txt of {url.host} forbids {url.raw_path}"[:200]
            )

    def _rules_of(self, origin: str) -> asyncio.Task[Protego]:
        asked_at, task = self._origins.get(origin, (0.0, None))
        if task is None or time.monotonic() - asked_at > KEEP_S:
            task = asyncio.create_task(self._load(origin))
            self._origins[origin] = (time.monotonic(), task)
            while len(self._origins) > MAX_HOSTS:
                self._origins.popitem(last=False)
        return task

    async def _load(self, origin: str) -> Protego:
        try:
            response = await self._fetcher.get(
                f"{origin}/robots.txt", Budget(self._timeout_s), MAX_ROBOTS_BYTES
            )
        except FetchError as error:
            if 400 <= (error.http_status or 0) < 500 or error.status == "failed:too_many_redirects":
                return Protego.parse("")
            if error.http_status or error.status in ("failed:timeout", "failed:read"):
                raise FetchError(
                    "rejected:robots", f"robots.txt unreadable: {error}", error.http_status
                ) from error
            raise
        text = response.content[:MAX_PARSED_BYTES].decode("utf-8", "replace")
        # half a megabyte of rules takes tenths of a second: not on the loop that serves everybody
        # else
        return await asyncio.to_thread(Protego.parse, text)


def check_robots_tags(values: list[str], product: str) -> None:
    """FetchError "rejected:x_robots_tag" when one of the header's values tells us (or everybody)
    not to use the image.

    A value is a list of directives; "name:" before one starts those of the crawler of that name
    ("googlebot: noindex, nofollow"), except where the name is that of a directive
    ("unavailable_after: 1 Jan 2030").
    """
    for value in values:
        addressee = ""
        for item in value.lower().split(","):
            name, colon, rest = (part.strip() for part in item.partition(":"))
            if colon and name not in _VALUED_TAGS:
                addressee, name = name, rest
            if name in _FORBIDDING_TAGS and addressee in ("", "*", product.lower()):
                raise FetchError("rejected:x_robots_tag", f"X-Robots-Tag: {value}"[:200], 200)
