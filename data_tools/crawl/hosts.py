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
# fail as "failed:host_busy", and a retry round asks for them again.
MAX_WAIT_S = 60.0
MAX_HOSTS = 50_000


class HostBusy(Exception):
    """The host's next turn is further away than MAX_WAIT_S, or the host said when to come again."""

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
    burst_s: float
    """Seconds that the schedule may lag behind the clock: the requests of this time can be sent at
    once to a host that was idle."""
    next_at: float = 0.0
    closed_until: float = 0.0
    users: int = 0


class HostTurns:
    """Gives out turns to ask a host: `async with turns.of("example.org:443"): ...`.

    These are token buckets, kept as a schedule: each request moves the host's next turn by 1 /
    rate; an idle host saves up one second of turns. `requests_per_s` 0 is no limit.
    """

    def __init__(self, connections: int, requests_per_s: float) -> None:
        self._connections, self._requests_per_s = connections, requests_per_s
        self._hosts: OrderedDict[str, _Host] = OrderedDict()

    @asynccontextmanager
    async def of(self, name: str) -> AsyncIterator[None]:
        """Wait for a turn at the host `name`. Raises HostBusy if it is too far away."""
        host = self._host(name)
        host.users += 1
        try:
            await self._wait(host, name)
            if host.turns.locked():
                await _within(host.turns.acquire(), name)
            else:
                await host.turns.acquire()
            try:
                yield
            finally:
                host.turns.release()
        finally:
            host.users -= 1

    def slow_down(self, name: str, delay_s: float) -> None:
        """Leave `delay_s` between requests, as the host asks (Crawl-delay)."""
        host = self._host(name)
        if delay_s > host.interval_s:
            # never longer than MAX_WAIT_S, after which requests are refused anyway
            host.interval_s, host.burst_s = min(delay_s, MAX_WAIT_S), 0.0

    def close(self, name: str, seconds: float) -> None:
        """Refuse requests for `seconds`, as the host asks (429 with Retry-After)."""
        self._host(name).closed_until = time.monotonic() + seconds

    async def _wait(self, host: _Host, name: str) -> None:
        now = time.monotonic()
        if host.closed_until > now:
            left = host.closed_until - now
            raise HostBusy(
                f"{name} asked not to be asked for another {left:.0f} s", host_asked=True
            )
        if not host.interval_s:
            return
        turn = max(host.next_at, now - host.burst_s)
        if turn - now > MAX_WAIT_S:
            raise HostBusy(f"the next turn at {name} is in {turn - now:.0f} s", host_asked=False)
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
            if host.users or host.closed_until > time.monotonic():
                self._hosts[name] = host
                return


async def _within(acquire: object, name: str) -> None:
    try:
        await asyncio.wait_for(acquire, MAX_WAIT_S)  # type: ignore[arg-type]
    except asyncio.TimeoutError:
        raise HostBusy(f"no connection to {name} is free in {MAX_WAIT_S:.0f} s", False) from None
