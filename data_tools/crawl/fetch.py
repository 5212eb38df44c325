"""One GET of one URL on the open web: pinned addresses, redirects followed by hand, one deadline,
capped bytes.

Nothing that a server does makes a request last longer than its deadline or hold more than
`max_bytes` (x2 while it is inflated). What goes wrong is a FetchError whose `status` is the word of
the ledger.
"""

from __future__ import annotations

import asyncio
import email.utils
import ssl
import time
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urljoin
from weakref import WeakValueDictionary

import aiohttp
from yarl import URL

from data_tools.crawl.addresses import AddressPolicy, AddressRefused, CheckedResolver
from data_tools.schema import canonical_url

MAX_REDIRECTS = 5
MAX_ATTEMPTS = 3
# Longer URLs are data in disguise; no image of LAION-400M has one.
MAX_URL_CHARS = 8192
_REDIRECTS = {301, 302, 303, 307, 308}
_TRANSIENT = {408, 429, 500, 502, 503, 504}
_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
Result = TypeVar("Result")


class FetchError(Exception):
    """`status` as the ledger has it ("failed:timeout"), the HTTP status where one was seen, and
    what happened in words."""

    def __init__(self, status: str, detail: str = "", http_status: int | None = None) -> None:
        super().__init__(status, detail, http_status)
        self.status, self.detail, self.http_status = status, detail, http_status
        self.retry_after_s: float | None = None
        """None: another attempt can't help. 0: it can, when is not known."""

    def __str__(self) -> str:
        return f"{self.status} {self.detail}".strip()


@dataclass(frozen=True)
class Response:
    content: bytes
    http_status: int
    url: URL
    robots_tags: list[str]
    """Values of X-Robots-Tag."""


class Budget:
    """Seconds that one URL may still spend on the wire. Waiting for its host's turn is our doing
    and not counted."""

    def __init__(self, seconds: float) -> None:
        self.left = seconds

    async def spend(self, work: Awaitable[Result]) -> Result:
        started = time.monotonic()
        try:
            return await asyncio.wait_for(work, max(self.left, 0))
        except asyncio.TimeoutError:
            raise FetchError("failed:timeout", "the URL's deadline passed") from None
        finally:
            self.left -= time.monotonic() - started


async def _anyone(url: URL) -> None:
    """The permit of a request that asks nobody (robots.txt itself)."""


class Fetcher:
    """`async with Fetcher(...) as fetcher: response = await fetcher.get(url, Budget(20),
    max_bytes)`."""

    def __init__(self, policy: AddressPolicy, user_agent: str, connections_per_host: int) -> None:
        self._policy = policy
        self._per_host = connections_per_host
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=CheckedResolver(policy), limit=0),
            headers={
                "User-Agent": user_agent,
                "Accept": "image/*,*/*;q=0.1",
                # Images are compressed already; what a server compresses nonetheless is inflated
                # below, under the cap.
                "Accept-Encoding": "identity",
            },
            timeout=aiohttp.ClientTimeout(total=None),  # Budget is the deadline
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )

    async def __aenter__(self) -> Fetcher:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def get(
        self,
        url: str,
        budget: Budget,
        max_bytes: int,
        permit: Callable[[URL], Awaitable[None]] = _anyone,
    ) -> Response:
        """Fetch, with up to two more attempts where they can help and the budget allows. `permit`
        is awaited for each address on the way and raises FetchError where it must not be
        fetched."""
        for attempt in range(MAX_ATTEMPTS):
            try:
                return await self._follow(url, budget, max_bytes, permit)
            except FetchError as error:
                if error.retry_after_s is None or attempt == MAX_ATTEMPTS - 1:
                    raise
                wait_s = max(error.retry_after_s, 0.5 * 2**attempt)
                if wait_s >= budget.left:
                    raise
                budget.left -= wait_s
                await asyncio.sleep(wait_s)
        raise RuntimeError("not reached: the last attempt returns or raises")

    async def _follow(
        self, url: str, budget: Budget, max_bytes: int, permit: Callable[[URL], Awaitable[None]]
    ) -> Response:
        for _ in range(MAX_REDIRECTS + 1):
            target = parse_url(url)
            await permit(target)
            turns = self._turns.setdefault(target.host or "", asyncio.Semaphore(self._per_host))
            async with turns:
                answer = await budget.spend(self._request(target, max_bytes))
            if isinstance(answer, Response):
                return answer
            url = answer
        raise FetchError(
            "failed:too_many_redirects", f"more than {MAX_REDIRECTS}, the last to {url}"
        )

    async def _request(self, url: URL, max_bytes: int) -> Response | str:
        """The response, or the address it redirects to."""
        try:
            self._policy.check_literal(url.host or "", url.port or 0)
            async with self._session.get(url, allow_redirects=False) as response:
                if response.status in _REDIRECTS:
                    return urljoin(str(url), response.headers.get("Location", ""))
                if response.status != 200:
                    raise _http_error(response)
                content = await _read_body(response, max_bytes)
                tags = response.headers.getall("X-Robots-Tag", [])
                return Response(content, response.status, url, tags)
        except (AddressRefused, aiohttp.ClientError, OSError, ValueError) as error:
            raise _named(error) from error


def parse_url(url: str) -> URL:
    """The canonical form (é, spaces and IDN encoded, no user:password), as the uid has it;
    FetchError when there is none."""
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


def _http_error(response: aiohttp.ClientResponse) -> FetchError:
    error = FetchError(f"failed:http_{response.status}", response.reason or "", response.status)
    if response.status in _TRANSIENT:
        error.retry_after_s = _retry_after(response.headers.get("Retry-After", ""))
    return error


def _retry_after(value: str) -> float:
    """Seconds from now, from either form of the header (RFC 9110, 10.2.3); 0 when it is absent or
    unreadable."""
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0


async def _read_body(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """The whole body, inflated; neither its wire form nor its inflated form may pass
    `max_bytes`."""
    declared = response.content_length
    if declared is not None and declared > max_bytes:
        raise FetchError(
            "rejected:too_large", f"{declared} bytes declared, {max_bytes} allowed", response.status
        )
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower() or "identity"
    if encoding != "identity" and encoding not in _WINDOW_BITS:
        raise FetchError(
            "failed:content_encoding", f"'{encoding}' was not asked for", response.status
        )
    body, received = bytearray(), 0
    inflater = None if encoding == "identity" else zlib.decompressobj(_WINDOW_BITS[encoding])
    async for chunk in response.content.iter_any():
        received += len(chunk)
        if inflater is None:
            body += chunk
        else:
            try:
                body += inflater.decompress(chunk, max_bytes + 1 - len(body))
            except zlib.error as error:
                raise FetchError("failed:content_encoding", f"{error}", response.status) from error
        if max(received, len(body)) > max_bytes:
            raise FetchError("rejected:too_large", f"more than {max_bytes} bytes", response.status)
    if inflater is not None and not inflater.eof:
        raise FetchError("failed:read", f"the {encoding} stream is cut off", response.status)
    return bytes(body)


def _named(error: Exception) -> FetchError:
    """The ledger's word for what aiohttp, the resolver or the socket raised; order matters,
    subclasses come first."""
    if isinstance(error, AddressRefused):
        return FetchError("rejected:private_address", f"{error}")
    if isinstance(error, aiohttp.InvalidURL):
        return FetchError("rejected:bad_url", f"{error}")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return FetchError("failed:dns", f"{error}")
    if isinstance(error, (aiohttp.ClientSSLError, ssl.SSLError)):
        return FetchError("failed:tls", f"{error}")
    if isinstance(error, aiohttp.ClientConnectorError):
        return FetchError("failed:connect", f"{error}")
    if isinstance(error, (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError, OSError)):
        broken = FetchError("failed:read", f"{error!r}")
        broken.retry_after_s = 0.0
        return broken
    if isinstance(error, aiohttp.ClientError):
        return FetchError("failed:protocol", f"{error!r}")
    return FetchError("rejected:bad_url", f"{error!r}")
