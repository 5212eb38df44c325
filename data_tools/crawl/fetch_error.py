"""The error that says why a URL was not fetched, as the ledger names it; and a URL's time
budget."""

from __future__ import annotations

import asyncio
import http.client
import ssl
import time
from collections.abc import Awaitable
from typing import TypeVar

import aiohttp
from aiohttp.http_exceptions import ContentLengthError, TransferEncodingError

from data_tools.crawl.addresses import AddressRefused
from data_tools.crawl.hosts import MAX_WAIT_S, HostBusy

Result = TypeVar("Result")
# Failures that may be gone later: a retry round asks for these URLs again. Not for missing pages,
# content that is no image, addresses that are none and sites that do not want us.
PASSING = {
    "failed:connect",
    "failed:dns",
    "failed:guard",
    "failed:host_busy",
    "failed:http_408",
    "failed:http_429",
    "failed:http_500",
    "failed:http_502",
    "failed:http_503",
    "failed:http_504",
    "failed:img2dataset",
    "failed:read",
    "failed:robots_unreachable",
    "failed:timeout",
}


class FetchError(Exception):
    """Why a URL was not fetched: `status` as it is in the ledger ("failed:timeout"), the HTTP
    status if one came, and `detail` in words."""

    def __init__(
        self,
        status: str,
        detail: str = "",
        http_status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(status, detail, http_status, retry_after_s)
        self.status, self.detail, self.http_status = status, detail, http_status
        self.retry_after_s = retry_after_s
        """Seconds to wait before another attempt. 0: another attempt can help, but the server did
        not say when. None: it can't help."""
        self.is_odd = False
        """The answer broke a rule of HTTP; a client that takes it less strictly may read it."""

    def __str__(self) -> str:
        return f"{self.status} {self.detail}".strip()


class Budget:
    """Seconds that one URL may still spend on the network. The wait for its hosts' turns is our own
    doing and has seconds of its own: `wait_left`, for all redirects together."""

    def __init__(self, seconds: float, wait_s: float = MAX_WAIT_S) -> None:
        self.left, self.wait_left = seconds, wait_s

    async def spend(self, work: Awaitable[Result]) -> Result:
        """Await `work` and subtract the time that it took. Raises FetchError "failed:timeout" if no
        time is left."""
        started = time.monotonic()
        try:
            return await asyncio.wait_for(work, max(self.left, 0))
        except asyncio.TimeoutError:
            raise FetchError("failed:timeout", "the URL's deadline passed") from None
        finally:
            self.left -= time.monotonic() - started


def named(error: Exception) -> FetchError:
    """The FetchError for what aiohttp, the resolver or the socket raised."""
    if isinstance(error, HostBusy) and error.host_asked:
        return FetchError("failed:http_429", f"{error}", 429)
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        # no attempt more: the kernel has tried again twice by now
        return FetchError("failed:connect", "no answer to the attempt to connect")
    for kinds, status, retry_after_s in _NAMES:
        if isinstance(error, kinds):
            made = FetchError(status, f"{error}" or repr(error), retry_after_s=retry_after_s)
            made.is_odd = _is_odd(error)
            return made
    return FetchError("rejected:bad_url", f"{error!r}")


def _is_odd(error: Exception) -> bool:
    """Whether it is aiohttp's parser that stopped; of a body, it says so in the cause."""
    return isinstance(error, aiohttp.ClientResponseError) or isinstance(
        error.__cause__, (TransferEncodingError, ContentLengthError)
    )


# The first match counts, so subclasses stand before their base classes.
_NAMES: list[tuple[type[Exception] | tuple[type[Exception], ...], str, float | None]] = [
    (AddressRefused, "rejected:private_address", None),
    (HostBusy, "failed:host_busy", None),
    (aiohttp.InvalidURL, "rejected:bad_url", None),
    (aiohttp.ClientConnectorDNSError, "failed:dns", None),
    ((aiohttp.ClientSSLError, ssl.SSLError), "failed:tls", None),
    (aiohttp.ClientConnectorError, "failed:connect", 0.0),
    ((aiohttp.ClientPayloadError, aiohttp.ClientConnectionError, OSError), "failed:read", 0.0),
    (http.client.IncompleteRead, "failed:read", 0.0),
    ((aiohttp.ClientError, http.client.HTTPException), "failed:protocol", None),
]
