"""One GET of one URL on the open web, with checked addresses, one deadline, and a limit on bytes.

Nothing that a server does makes a request last longer than its deadline or hold more than
`max_bytes` in memory (twice that while it is decompressed). Redirects are followed here and not by
aiohttp, so that each address on the way is checked. All that goes wrong is a FetchError, whose
`status` is the one in the ledger.
"""

from __future__ import annotations

import asyncio
import email.utils
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urljoin

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from data_tools.crawl.addresses import AddressPolicy, AddressRefused, CheckedResolver
from data_tools.crawl.body import read_body
from data_tools.crawl.fetch_error import Budget, FetchError, named
from data_tools.crawl.hosts import HostBusy, HostTurns
from data_tools.tables.schema import canonical_url

MAX_REDIRECTS = 5
MAX_ATTEMPTS = 3
# Longer URLs hold data and no address; no image of LAION-400M has one.
MAX_URL_CHARS = 8192
# How long an address is used after it was looked up and checked.
KEEP_ADDRESS_S = 300
# A host that says "not before next month" is left alone for a day.
MAX_CLOSED_S = 24 * 3600.0
_REDIRECTS = {301, 302, 303, 307, 308}
_TRANSIENT = {408, 429, 502, 503, 504}
Headers = CIMultiDictProxy[str]


@dataclass(frozen=True)
class Response:
    """A successful answer; `url` is the address after all redirects."""

    content: bytes
    http_status: int
    url: URL


@dataclass(frozen=True)
class FetchLimits:
    """How fast a host is asked, and how slow it may be."""

    connections_per_host: int
    requests_per_host_per_s: float
    """0: no limit."""
    connect_timeout_s: float
    min_bytes_per_s: float


async def _any_url(url: URL) -> None:
    """Accept every URL, as for robots.txt itself."""


def _any_headers(headers: Headers) -> None:
    """Accept every response."""


@dataclass(frozen=True)
class FetchRequest:
    """How a URL is to be fetched."""

    max_bytes: int
    whole: bool = True
    """False: a longer body is cut at max_bytes instead of refused."""
    check_url: Callable[[URL], Awaitable[None]] = _any_url
    """Awaited for each address on the way; raises FetchError if it must not be fetched."""
    check_headers: Callable[[Headers], None] = _any_headers
    """Called before the body is read; raises FetchError if the response must not be used."""


class Fetcher:
    """A client for the open web.

    async with Fetcher(policy, user_agent, limits) as fetcher:
        response = await fetcher.get(url, Budget(20), FetchRequest(max_bytes))
    """

    def __init__(self, policy: AddressPolicy, user_agent: str, limits: FetchLimits) -> None:
        self._policy, self._limits = policy, limits
        self.turns = HostTurns(limits.connections_per_host, limits.requests_per_host_per_s)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=CheckedResolver(policy), limit=0, ttl_dns_cache=KEEP_ADDRESS_S
            ),
            headers={
                "User-Agent": user_agent,
                "Accept": "image/*,*/*;q=0.1",
                # Images are compressed already. If a server compresses nonetheless, read_body
                # decompresses, up to max_bytes.
                "Accept-Encoding": "identity",
            },
            # the deadline of the whole request is its Budget
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=limits.connect_timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )

    async def __aenter__(self) -> Fetcher:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def get(self, url: str, budget: Budget, request: FetchRequest) -> Response:
        """Fetch a URL, with up to MAX_ATTEMPTS attempts if they can help and the budget allows.
        Raises FetchError."""
        for attempt in range(MAX_ATTEMPTS):
            try:
                return await self._follow(url, budget, request)
            except FetchError as error:
                if error.retry_after_s is None or attempt == MAX_ATTEMPTS - 1:
                    raise
                wait_s = max(error.retry_after_s, 0.5 * 2**attempt)
                if wait_s >= budget.left:
                    raise
                budget.left -= wait_s
                await asyncio.sleep(wait_s)
        raise RuntimeError("not reached: the last attempt returns or raises")

    async def _follow(self, url: str, budget: Budget, request: FetchRequest) -> Response:
        for _ in range(MAX_REDIRECTS + 1):
            target = parse_url(url)
            await budget.spend(request.check_url(target))
            name = host_name(target)
            try:
                async with self.turns.of(name):
                    answer = await budget.spend(self._get_once(target, request))
            except HostBusy as error:
                raise named(error) from None
            except FetchError as error:
                if error.http_status == 429 and (error.retry_after_s or 0) > budget.left:
                    # the host would answer the same to each of its other URLs
                    self.turns.close(name, min(error.retry_after_s or 0, MAX_CLOSED_S))
                raise
            if isinstance(answer, Response):
                return answer
            url = answer
        raise FetchError(
            "failed:too_many_redirects", f"more than {MAX_REDIRECTS}, the last to {url}"
        )

    async def _get_once(self, url: URL, request: FetchRequest) -> Response | str:
        """The response, or the address that it redirects to."""
        try:
            self._policy.check_literal(url.host or "", url.port or 0)
            async with self._session.get(url, allow_redirects=False) as response:
                if response.status in _REDIRECTS:
                    return urljoin(str(url), response.headers.get("Location", ""))
                if response.status != 200:
                    raise _http_error(response.status, response.reason or "", response.headers)
                request.check_headers(response.headers)
                content = await read_body(
                    response, request.max_bytes, self._limits.min_bytes_per_s, request.whole
                )
                return Response(content, response.status, url)
        except (AddressRefused, aiohttp.ClientError, OSError, ValueError) as error:
            raise named(error) from error


def host_name(url: URL) -> str:
    """ "HOST:PORT", the name under which HostTurns knows a host."""
    return f"{url.host}:{url.port}"


def parse_url(url: str) -> URL:
    """The canonical form of a URL (é, spaces and IDN encoded, no user:password), from which the uid
    is made. Raises FetchError if there is none."""
    try:
        if len(url) > MAX_URL_CHARS:
            raise ValueError(f"longer than {MAX_URL_CHARS} characters")
        parsed = URL(canonical_url(url), encoded=True)
        host, port = parsed.host, parsed.port
    except ValueError as error:
        raise FetchError("rejected:bad_url", f"{error}") from error
    if parsed.scheme not in ("http", "https"):
        raise FetchError("rejected:scheme", f"'{parsed.scheme}': only http and https are fetched")
    if not host or not port:
        raise FetchError("rejected:bad_url", "no host")
    return parsed


def _http_error(status: int, reason: str, headers: Mapping[str, str]) -> FetchError:
    retry_after_s = None
    if status in _TRANSIENT:
        retry_after_s = _retry_after(headers.get("Retry-After", ""))
    return FetchError(f"failed:http_{status}", reason, status, retry_after_s)


def _retry_after(value: str) -> float:
    """Seconds from now that a Retry-After header asks for, in either of its forms (RFC 9110,
    10.2.3); 0 if it is absent or unreadable."""
    if value.strip().isdecimal():
        return float(value[:18])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0
