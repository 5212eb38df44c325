"""One GET of one URL on the open web, with checked addresses, one deadline, and a limit on bytes.

Nothing that a server does makes a request last longer than its deadline or hold more than
`max_bytes` in memory (twice that while it is decompressed). Redirects are followed here and not by
aiohttp, so that each address on the way is checked. All that goes wrong is a FetchError, whose
`status` is the one in the ledger.
"""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import aiohttp
from yarl import URL

from data_tools.crawl.addresses import AddressPolicy, AddressRefused, CheckedResolver
from data_tools.crawl.answer import content_of, judge
from data_tools.crawl.body import read_body
from data_tools.crawl.fetch_error import Budget, FetchError, named
from data_tools.crawl.fetch_request import Answer, FetchLimits, FetchRequest
from data_tools.crawl.hosts import HostBusy, HostTurns
from data_tools.crawl.lenient import LenientClient
from data_tools.tables.schema import canonical_url

MAX_REDIRECTS = 10  # as urllib; RFC 9309 asks for five at least
MAX_ATTEMPTS = 3
# Longer URLs hold data and no address; no image of LAION-400M has one.
MAX_URL_CHARS = 8192
# How long an address is used after it was looked up and checked.
KEEP_ADDRESS_S = 300
# A host that says "not before next month" is left alone for a day.
MAX_CLOSED_S = 24 * 3600.0

_RAISED = (AddressRefused, aiohttp.ClientError, http.client.HTTPException, OSError, ValueError)
Client = Callable[[URL, FetchRequest], Awaitable["Answer | str"]]


@dataclass(frozen=True)
class Response:
    """A successful answer; `url` is the address after all redirects."""

    content: bytes
    http_status: int
    url: URL


class Fetcher:
    """A client for the open web.

    async with Fetcher(policy, user_agent, limits) as fetcher:
        response = await fetcher.get(url, Budget(20), FetchRequest(max_bytes))
    """

    def __init__(self, policy: AddressPolicy, user_agent: str, limits: FetchLimits) -> None:
        self._policy, self._limits = policy, limits
        self.turns = HostTurns(limits.connections_per_host, limits.requests_per_host_per_s)
        resolver = CheckedResolver(policy)
        headers = {
            "User-Agent": user_agent,
            "Accept": "image/*,*/*;q=0.1",
            # Images are compressed already. If a server compresses nonetheless, content_of
            # decompresses, up to max_bytes.
            "Accept-Encoding": "identity",
        }
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=resolver, limit=0, ttl_dns_cache=KEEP_ADDRESS_S
            ),
            headers=headers,
            # the deadline of the whole request is its Budget
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=limits.connect_timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )
        self._lenient = LenientClient(resolver, headers, limits)

    async def __aenter__(self) -> Fetcher:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._lenient.close()
        await self._session.close()

    async def get(self, url: str, budget: Budget, request: FetchRequest) -> Response:
        """Fetch a URL, with up to MAX_ATTEMPTS attempts if they can help and the budget allows. An
        answer that aiohttp can't read is asked for again by the lenient client. Raises
        FetchError."""
        client: Client = self._strict
        odd: FetchError | None = None
        for attempt in range(MAX_ATTEMPTS):
            try:
                return await self._follow(url, budget, request, client)
            except FetchError as error:
                is_last = attempt == MAX_ATTEMPTS - 1
                if error.is_odd and not is_last:
                    client, odd = self._lenient.get, error
                    continue
                if odd is not None and odd.retry_after_s is None and error.status == "failed:read":
                    raise odd from error  # it broke off where aiohttp's parser had stopped
                if error.retry_after_s is None or is_last:
                    raise
                wait_s = max(error.retry_after_s, 0.5 * 2**attempt)
                if wait_s >= budget.left:
                    raise
                budget.left -= wait_s
                await asyncio.sleep(wait_s)
        raise RuntimeError("not reached: the last attempt returns or raises")

    async def _follow(
        self, url: str, budget: Budget, request: FetchRequest, client: Client
    ) -> Response:
        for _ in range(MAX_REDIRECTS + 1):
            target = parse_url(url)
            await budget.spend(request.check_url(target))
            name = host_name(target)
            try:
                async with self.turns.of(name, budget.wait_left) as waited_s:
                    budget.wait_left -= waited_s
                    answer = await budget.spend(self._get_once(target, request, client))
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

    async def _get_once(self, url: URL, request: FetchRequest, client: Client) -> Response | str:
        """The response, or the address that it redirects to."""
        try:
            self._policy.check_literal(url.host or "", url.port or 0)
            answer = await client(url, request)
        except _RAISED as error:
            raise named(error) from error
        if isinstance(answer, str):
            return answer
        return Response(await content_of(answer, request), answer.status, url)

    async def _strict(self, url: URL, request: FetchRequest) -> Answer | str:
        async with self._session.get(url, allow_redirects=False) as response:
            status, reason, headers = response.status, response.reason or "", response.headers
            target = judge(url, status, reason, headers, request)
            if target:
                return target
            body = await read_body(
                response, request.max_bytes, self._limits.min_bytes_per_s, request.whole
            )
            return Answer(status, reason, headers, *body)


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
