"""robots.txt (RFC 9309): asked of each origin once, obeyed for each address."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict

from protego import Protego
from yarl import URL

from data_tools.crawl.fetch import Fetcher, Wish, host_name
from data_tools.crawl.fetch_error import Budget, FetchError

# RFC 9309: a crawler parses at least 500 KiB (2.5), keeps a robots.txt no longer than a day (2.4).
MAX_ROBOTS_BYTES = 512_000
KEEP_S = 24 * 3600.0
# A host that gave no answer is not asked again at once by each of its URLs, but within the hour.
KEEP_FAILURE_S = 600.0
MAX_ORIGINS = 20_000
# What the RFC calls unreachable (2.3.1.4): forbidden for now. Other failures of the host keep their
# own name, which tells more.
_UNREACHABLE = {"failed:timeout", "failed:read", "failed:protocol", "failed:content_encoding"}


class RobotsGate:
    """Asks each origin for its robots.txt once a day, however many URLs wait for the answer.

    4xx (there is none) allows everything; 5xx, 429 and a file that can't be read forbid everything
    for ten minutes ("failed:robots_unreachable"), as the RFC says. A host that can't be reached at
    all keeps its own reason (failed:dns), which tells the user more than "forbidden". Of a file
    over 500 KiB the beginning counts. A Crawl-delay slows the host down.
    """

    def __init__(self, fetcher: Fetcher, product: str, timeout_s: float) -> None:
        self._fetcher, self._product, self._timeout_s = fetcher, product, timeout_s
        self._origins: OrderedDict[str, tuple[float, asyncio.Task[Protego]]] = OrderedDict()

    async def check(self, url: URL) -> None:
        """FetchError "rejected:robots" where the site forbids this address."""
        task = self._rules_of(url)
        rules = task.result() if task.done() else await asyncio.shield(task)
        if not rules.can_fetch(str(url), self._product):
            raise FetchError(
                "rejected:robots", f"robots.txt of {url.host} forbids {url.raw_path}"[:200]
            )

    def _rules_of(self, url: URL) -> asyncio.Task[Protego]:
        origin = str(url.origin())
        asked_at, task = self._origins.get(origin, (0.0, None))
        if task is None or time.monotonic() - asked_at > _keep_s(task):
            task = asyncio.create_task(self._load(url))
            # Nobody may be left to wait for it, and asyncio reports errors that nobody took.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._origins[origin] = (time.monotonic(), task)
            while len(self._origins) > MAX_ORIGINS:
                self._origins.popitem(last=False)
        return task

    async def _load(self, url: URL) -> Protego:
        wish = Wish(MAX_ROBOTS_BYTES, whole=False)
        try:
            response = await self._fetcher.get(
                f"{url.origin()}/robots.txt", Budget(self._timeout_s), wish
            )
        except FetchError as error:
            code = error.http_status or 0
            if 400 <= code < 500 and code != 429 or error.status == "failed:too_many_redirects":
                return Protego.parse("")
            if error.http_status or error.status in _UNREACHABLE:
                raise FetchError(
                    "failed:robots_unreachable", f"robots.txt: {error}", error.http_status
                ) from error
            raise FetchError(
                error.status, f"robots.txt: {error.detail}", error.http_status
            ) from error
        text = response.content.decode("utf-8", "replace")
        try:
            # half a megabyte of rules takes tenths of a second: not on the loop that serves
            # everybody else
            rules = await asyncio.to_thread(Protego.parse, text)
        except Exception as error:  # whatever a hostile file provokes in the parser
            raise FetchError("failed:robots_unreachable", f"robots.txt: {error!r}") from error
        delay_s = rules.crawl_delay(self._product)
        if delay_s:
            self._fetcher.turns.slow_down(host_name(url), float(delay_s))
        return rules


def _keep_s(task: asyncio.Task[Protego]) -> float:
    failed = task.done() and (task.cancelled() or task.exception() is not None)
    return KEEP_FAILURE_S if failed else KEEP_S
