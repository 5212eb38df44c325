"""Shared by the local search APIs: replies, faults that come every n-th time, throttles."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from data_tools.demo.server import Scripted

Item = TypeVar("Item")
PERIODS_S = {"second": 1.0, "min": 60.0, "hour": 3600.0, "day": 86400.0}


@dataclass(frozen=True)
class Reply:
    """An HTTP reply. `body` is sent as JSON, a string as it is."""

    status: int
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PageFaults:
    """Faults of servers with pages; 0 and False: never."""

    throttle_every: int = 0
    """Every n-th request is 429; it is fine when asked again."""
    retry_after_s: int | None = None
    """None: the 429 does not say for how long."""
    unavailable_every: int = 0
    """Every n-th request fails in the API's own words (Flickr's HTTP 200, a plain 503)."""
    repeated: int = 0
    """This number of items of the page before come again at the head of a page."""
    shrinks_by: int = 0
    """The total is less by so many on each further page."""
    text_totals: bool = False
    """Numbers come as strings."""
    null_title_every: int = 0

    def turn(self, number: int, every: int) -> bool:
        return bool(every) and number % every == 0

    def throttled(self) -> Reply:
        waits = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        return Reply(429, {"detail": "Request was throttled."}, waits)


@dataclass
class ApiLog:
    """What one API was asked."""

    endpoint: str = ""
    scripted: deque[Scripted] = field(default_factory=deque)
    requests: list[dict[str, str]] = field(default_factory=list)
    """Parameters of each request that was given a result."""
    refused: list[str] = field(default_factory=list)
    """Why the others were not."""


def page_of(
    items: Sequence[Item], page: int, page_size: int, repeated: int
) -> tuple[list[Item], bool]:
    """Items of a page (from 1), with the last `repeated` of the page before in front; and whether
    there are any of its own."""
    start = (page - 1) * page_size
    own = list(items[start : start + page_size])
    return list(items[max(0, start - repeated) : start]) + own, bool(own)


class Throttle:
    """A sliding log of requests, as Django REST framework keeps it: "20/min"."""

    def __init__(self, scope: str, rate: str) -> None:
        number, period = rate.split("/")
        self.scope, self.rate = scope, rate
        self.num_requests, self.period_s = int(number), PERIODS_S[period]
        self.log: deque[float] = deque()

    def refusal_s(self) -> float | None:
        """Count a request (None), or say in how many seconds the next is possible."""
        now = time.monotonic()
        while self.log and self.log[0] <= now - self.period_s:
            self.log.popleft()
        if len(self.log) >= self.num_requests:
            return self.log[0] + self.period_s - now
        self.log.append(now)
        return None

    def headers(self) -> dict[str, str]:
        return {
            f"X-RateLimit-Limit-{self.scope}": self.rate,
            f"X-RateLimit-Available-{self.scope}": str(self.num_requests - len(self.log)),
        }
