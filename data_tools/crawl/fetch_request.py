"""What is asked for, within which limits, and the answer as it came: what the two clients
(aiohttp's in fetch.py, the lenient one in lenient.py) share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from multidict import CIMultiDictProxy
from yarl import URL

Headers = CIMultiDictProxy[str]


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


def _any_content(content: bytes) -> bool:
    return True


def _never_whole(content: bytes) -> bool:
    return False


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
    recognises: Callable[[bytes], bool] = _any_content
    """Whether a body is of the kind that was asked for. Such a body is taken whatever
    Content-Encoding says about it, and with any status of 200 to 299."""
    is_complete: Callable[[bytes], bool] = _never_whole
    """Whether a body of that kind ends where it should. Such a body is taken although
    Content-Length states more bytes."""


@dataclass(frozen=True)
class Answer:
    """A response with a status of 200 to 299 and its body as it was sent, still compressed."""

    status: int
    reason: str
    headers: Headers
    body: bytes
    is_cut: bool
    """The body was longer than max_bytes, and the rest was not read."""
