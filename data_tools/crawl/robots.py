"""robots.txt (RFC 9309): each origin is asked for it once, and each address is checked against
it."""

from __future__ import annotations

import asyncio
import codecs

from protego import Protego
from yarl import URL

from data_tools.crawl.answer import looks_like_text
from data_tools.crawl.fetch import Fetcher, host_name
from data_tools.crawl.fetch_error import Budget, FetchError
from data_tools.crawl.fetch_request import FetchRequest
from data_tools.crawl.origins import OncePerOrigin

# RFC 9309 (2.5): a crawler parses at least 500 KiB.
MAX_ROBOTS_BYTES = 512_000
_LEADS_NOWHERE = {
    *("failed:too_many_redirects", "rejected:scheme"),
    *("rejected:bad_url", "rejected:private_address"),
}
# What the RFC calls unreachable (2.3.1.4): everything is forbidden for now. Other failures of the
# host keep their own status, which tells the user more.
_UNREACHABLE = {"failed:timeout", "failed:read", "failed:protocol", "failed:content_encoding"}


class RobotsGate:
    """Asks each origin for its robots.txt once a day, however many URLs wait for the answer.

    4xx (the site has none) allows everything; 5xx, 429 and a file that can't be read forbid
    everything for ten minutes ("failed:robots_unreachable"), as the RFC says. A host that can't be
    reached at all keeps its own status (failed:dns), which tells the user more than "forbidden". Of
    a file over 500 KiB only the beginning counts. A Crawl-delay slows down requests to the host.
    """

    def __init__(self, fetcher: Fetcher, product: str, timeout_s: float) -> None:
        self._fetcher, self._product, self._timeout_s = fetcher, product, timeout_s
        self._rules = OncePerOrigin(self._load)

    async def check(self, url: URL) -> None:
        """Raise FetchError "rejected:robots" if the site forbids this address."""
        rules, delay_s = await self._rules.get(url)
        if delay_s:
            self._fetcher.turns.slow_down(host_name(url), delay_s)
        if not rules.can_fetch(str(url), self._product):
            raise FetchError(
                "rejected:robots", f"robots.txt of {url.host} forbids {url.raw_path}"[:200]
            )

    async def _load(self, url: URL) -> tuple[Protego, float]:
        """The rules, and the Crawl-delay in seconds (0: none)."""
        request = FetchRequest(MAX_ROBOTS_BYTES, whole=False, recognises=looks_like_text)
        try:
            response = await self._fetcher.get(
                f"{url.origin()}/robots.txt", Budget(self._timeout_s), request
            )
        except FetchError as error:
            if _has_none(error):
                return Protego.parse(""), 0.0
            if error.http_status or error.status in _UNREACHABLE:
                raise FetchError(
                    "failed:robots_unreachable", f"robots.txt: {error}", error.http_status
                ) from error
            raise FetchError(
                error.status, f"robots.txt: {error.detail}", error.http_status
            ) from error
        text = _text(response.content)
        try:
            # half a megabyte of rules takes tenths of a second: in a thread, because the event
            # loop serves all other URLs meanwhile
            rules = await asyncio.to_thread(Protego.parse, text)
        except Exception as error:  # whatever a hostile file provokes in the parser
            raise FetchError("failed:robots_unreachable", f"robots.txt: {error!r}") from error
        return rules, float(rules.crawl_delay(self._product) or 0.0)


def _has_none(error: FetchError) -> bool:
    """Whether the failure means that the site has no robots.txt: 4xx without 429, or a redirect
    that leads nowhere, which Google too takes for 404 (a status of 300 or 304, too many of them,
    one to no web address). Where the site's own address is refused, its pictures are as well."""
    code = error.http_status or 0
    return (300 <= code < 500 and code != 429) or error.status in _LEADS_NOWHERE


def _text(content: bytes) -> str:
    """The file as text. Notepad puts a byte order mark before UTF-8, or writes UTF-16."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", "replace")
    return content.decode("utf-8", "replace").lstrip("\ufeff")
