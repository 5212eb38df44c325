"""When a host may be asked again: it limits connections at a time and requests per second, and
waits until the time that the host named itself."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

# A longer queue would occupy the threads of img2dataset with one slow site. The site's further URLs
# fail as "failed:host_busy", and the last round, where they may wait longer, asks for them again.
MAX_WAIT_S = 60.0
# A Crawl-delay of more than a day is taken for a day.
MAX_DELAY_S = 24 * 3600.0
MAX_HOSTS = 50_000


class HostBusy(Exception):
    """The host's next turn is further away than the URL may wait, or the host said when to come
    again."""

    def __init__(self, detail: str, host_asked: bool) -> None:
        super().__init__(detail, host_asked)
        self.detail, self.host_asked = detail, host_asked
        """True: the host itself asked for the pause (429 with Retry-After)."""

    def __str__(self) -> str:
        return self.detail


@dataclass
class _Host:
    turns: asyncio.Semaphore
    interval_s: float
    """Seconds between requests; `asked_for`: the host itself asked for them."""
    burst_s: float
    """Seconds that the schedule may lag behind the clock: the requests of this time can be sent at
    once to a host that was idle."""
    next_at: float = 0.0
    closed_until: float = 0.0
    users: int = 0
    asked_for: bool = False


class HostTurns:
    """Gives out turns to ask a host: `async with turns.of("example.org:443"): ...`.

    These are token buckets, kept as a schedule: each request moves the host's next turn by 1 /
    rate; an idle host saves up one second of turns. `requests_per_s` 0 is no limit.
    """

    def __init__(self, connections: int, requests_per_s: float) -> None:
        self._connections, self._requests_per_s = connections, requests_per_s
        self._hosts: OrderedDict[str, _Host] = OrderedDict()
        self.waiting = 0
        """Requests that wait for their turn."""

    @asynccontextmanager
    async def of(self, name: str, at_most_s: float | None = None) -> AsyncIterator[float]:
        """Wait for a turn at the host `name`; yields the seconds waited. Raises HostBusy if it is
        further away than `at_most_s` (MAX_WAIT_S where none is given)."""
        started = time.monotonic()
        at_most_s = MAX_WAIT_S if at_most_s is None else at_most_s
        host = self._host(name)
        host.users += 1
        try:
            self.waiting += 1
            try:
                await self._wait(host, name, at_most_s)
                if host.turns.locked():
                    await _within(host.turns.acquire(), name, at_most_s)
                else:
                    await host.turns.acquire()
            finally:
                self.waiting -= 1
            try:
                yield time.monotonic() - started
            finally:
                host.turns.release()
        finally:
            host.users -= 1

    def slow_down(self, name: str, delay_s: float) -> None:
        """Leave `delay_s` between requests, as the host asks (Crawl-delay)."""
        host = self._host(name)
        if delay_s > host.interval_s:
            host.interval_s, host.burst_s, host.asked_for = min(delay_s, MAX_DELAY_S), 0.0, True

    def close(self, name: str, seconds: float) -> None:
        """Refuse requests for `seconds`, as the host asks (429 with Retry-After)."""
        self._host(name).closed_until = time.monotonic() + seconds

    async def _wait(self, host: _Host, name: str, at_most_s: float) -> None:
        now = time.monotonic()
        if host.closed_until > now:
            left = host.closed_until - now
            raise HostBusy(
                f"{name} asked not to be asked for another {left:.0f} s", host_asked=True
            )
        if not host.interval_s:
            return
        turn = max(host.next_at, now - host.burst_s)
        if turn - now > at_most_s:
            raise HostBusy(_why_busy(host, name, turn - now, at_most_s), host_asked=False)
        host.next_at = turn + host.interval_s
        if turn > now:
            await asyncio.sleep(turn - now)

    def _host(self, name: str) -> _Host:
        host = self._hosts.get(name)
        if host is None:
            rate = self._requests_per_s
            interval_s = 1 / rate if rate else 0.0
            burst_s = max(0.0, 1.0 - interval_s)
            host = _Host(asyncio.Semaphore(self._connections), interval_s, burst_s)
            self._hosts[name] = host
            self._forget_idle()
        else:
            self._hosts.move_to_end(name)
        return host

    def _forget_idle(self) -> None:
        while len(self._hosts) > MAX_HOSTS:
            name, host = self._hosts.popitem(last=False)
            if host.users or max(host.closed_until, host.next_at) > time.monotonic():
                self._hosts[name] = host
                return


def _why_busy(host: _Host, name: str, wait_s: float, at_most_s: float) -> str:
    why = " (Crawl-delay)" if host.asked_for else ""
    return (
        f"{name} is asked once in {host.interval_s:g} s{why}; the next turn is in {wait_s:.0f} s, "
        f"and this URL may wait {max(0.0, at_most_s):.0f} s"
    )


async def _within(acquire: object, name: str, at_most_s: float) -> None:
    try:
        await asyncio.wait_for(acquire, max(0.0, at_most_s))  # type: ignore[arg-type]
    except asyncio.TimeoutError:
        raise HostBusy(f"no connection to {name} is free in {at_most_s:.0f} s", False) from None
