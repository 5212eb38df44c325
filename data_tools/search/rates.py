"""How fast a server may be asked: a token bucket for the pace, quotas per hour and per day.

A bucket for a day's requests would allow those of two days in one day: first the full bucket, then
its refill. Quotas are therefore counted in a sliding window, and kept in a file, so that a second
run does not start with a new quota.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from data_tools.config import SourcesConfig
from data_tools.ground.aside import write_text_aside
from data_tools.search.base import SourceStopped
from data_tools.search.limits import SourceLimits
from data_tools.tables.schema import DataError

# Slots per window. They bound the memory, and waste at most 1 % of the quota.
SLOTS = 100
# A header can ask for any pause.
LONGEST_PAUSE_S = 366 * 86400.0
# Shorter pauses are over before a killed run is started again.
REMEMBERED_PAUSE_S = 1.0


@dataclass(frozen=True)
class Quota:
    """At most `num_requests` in any `window_s` seconds. `used`: how many the server has counted."""

    num_requests: int
    window_s: float
    used: int = 0

    def __str__(self) -> str:
        names = {60.0: "a minute", 3600.0: "an hour", 86400.0: "a day", 2592000.0: "a month"}
        window = names.get(self.window_s, f"in {self.window_s:g} s")
        return f"{self.num_requests:,} requests {window}"


class Closed(Exception):
    """The limiter was closed while a request waited for its turn."""


class TokenBucket:
    """Allows `per_second` requests on average, at most `burst` at once. Not safe for threads."""

    def __init__(self, per_second: float, burst: int = 1) -> None:
        self.per_second, self.burst = per_second, burst
        self._tokens, self._filled_at = float(burst), time.monotonic()

    def wait_s(self) -> float:
        """Seconds until there is a token; 0 or less if there is one."""
        now = time.monotonic()
        gained = (now - self._filled_at) * self.per_second
        self._tokens, self._filled_at = min(self.burst, self._tokens + gained), now
        return (1 - self._tokens) / self.per_second

    def take(self) -> None:
        """Use up a token."""
        self._tokens -= 1


class SlidingWindow:
    """Counts the requests of the last `quota.window_s` seconds. Not safe for threads."""

    def __init__(self, quota: Quota, counts: dict[int, int] | None = None) -> None:
        self.quota = quota
        self.counts = counts or {}
        """Slot -> number of requests; slot i begins i * slot_s seconds after the epoch."""
        self._slot_s = quota.window_s / SLOTS

    def wait_s(self, now: float) -> float:
        """Seconds until one more request is within the quota; 0 or less if it is now."""
        self.counts = {slot: n for slot, n in self.counts.items() if self._left_s(slot, now) > 0}
        surplus = sum(self.counts.values()) - self.quota.num_requests + 1
        for slot in sorted(self.counts):
            if surplus <= 0:
                break
            surplus -= self.counts[slot]
            if surplus <= 0:
                return self._left_s(slot, now)
        return 0.0 if surplus <= 0 else self.quota.window_s  # a quota of 0

    def add(self, now: float, count: int = 1) -> None:
        """Count `count` requests at the time `now`."""
        slot = int(now // self._slot_s)
        self.counts[slot] = self.counts.get(slot, 0) + count

    def _left_s(self, slot: int, now: float) -> float:
        """Seconds until the slot's last request is a window old. A slot further ahead than the next
        window was counted by a clock that was wrong, and is ignored."""
        left_s = (slot + 1) * self._slot_s + self.quota.window_s - now
        return left_s if left_s <= 2 * self.quota.window_s else 0.0


class RateLimiter:
    """Gives out turns to ask one server; safe for threads.

    `memory` is the file that keeps quotas and pauses for the next process; None keeps nothing.
    """

    def __init__(
        self,
        per_second: float,
        burst: int = 1,
        quotas: Iterable[Quota] = (),
        max_wait_s: float = 120.0,
        memory: Path | None = None,
    ) -> None:
        self.max_wait_s = max_wait_s
        self._memory = memory
        self._bucket = TokenBucket(per_second, burst)
        self._not_before = 0.0  # seconds since the epoch
        self._remembered: dict[str, dict[int, int]] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        if memory is not None and memory.exists():
            self._recall(memory)
        self._windows = [self._window(quota) for quota in quotas]

    def take(self) -> None:
        """Wait for a turn. Raises SourceStopped if a quota or a pause takes longer than
        `max_wait_s`, and Closed if the limiter is closed meanwhile."""
        while not self._closed.is_set():
            wait_s, reason = self._try_take()
            if wait_s <= 0:
                return
            if reason and wait_s > self.max_wait_s:
                raise SourceStopped(f"{reason}; {come_back(wait_s)}")
            self._closed.wait(wait_s)
        raise Closed

    def pause(self, seconds: float) -> None:
        """Give out no turn during the next `seconds`, a year at most."""
        seconds = min(seconds, LONGEST_PAUSE_S)
        with self._lock:
            self._not_before = max(self._not_before, time.time() + seconds)
            if seconds > REMEMBERED_PAUSE_S:
                self._remember()

    def adopt(self, quotas: Sequence[Quota]) -> None:
        """Replace the quotas by those that the server states, with the requests it has counted."""
        with self._lock:
            stated = [(quota.num_requests, quota.window_s) for quota in quotas]
            known = [(w.quota.num_requests, w.quota.window_s) for w in self._windows]
            if stated != known:
                for window in self._windows:
                    self._remembered[_name(window.quota)] = window.counts
                self._windows = [self._window(quota) for quota in quotas]
            for window, quota in zip(self._windows, quotas):
                unseen = quota.used - sum(window.counts.values())
                if unseen > 0:  # another run, or another program with the same key
                    window.add(time.time(), unseen)

    def close(self) -> None:
        """Wake all threads that wait for a turn: they get Closed."""
        self._closed.set()

    def _try_take(self) -> tuple[float, str]:
        """Take a turn and return (0, no reason), or return the seconds to wait before the next
        attempt and the reason ("": the pace)."""
        with self._lock:
            now = time.time()
            waits = [(self._bucket.wait_s(), "")]
            waits.append((self._not_before - now, "the server asked for a pause"))
            for window in self._windows:
                waits.append((window.wait_s(now), f"the quota of {window.quota} is used up"))
            longest = max(waits)
            if longest[0] > 0:
                return longest
            self._bucket.take()
            for window in self._windows:
                window.add(now)
            if self._windows:
                # before the request: a kill may then lose a turn, but never gain one
                self._remember()
            return 0.0, ""

    def _window(self, quota: Quota) -> SlidingWindow:
        return SlidingWindow(quota, self._remembered.pop(_name(quota), None))

    def _recall(self, memory: Path) -> None:
        try:
            record = json.loads(memory.read_text())
            self._not_before = float(record["not_before"])
            for name, counts in record["windows"].items():
                self._remembered[name] = {int(slot): int(n) for slot, n in counts.items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"{memory} (what is used of the server's quotas) cannot be read: {error!r}; delete "
                "it if the last request is a day old"
            ) from error

    def _remember(self) -> None:
        if self._memory is None:
            return
        counts = self._remembered | {_name(w.quota): w.counts for w in self._windows}
        record = {"not_before": self._not_before, "windows": counts}
        write_text_aside(self._memory, json.dumps(record) + "\n")


def limiter_for(
    limits: SourceLimits, concurrency: int, sources: SourcesConfig, name: str, folder: Path | None
) -> RateLimiter:
    """The limiter of one source: it keeps to the server's limits and the job's pace. Its memory is
    a file in the folder of cursors."""
    return RateLimiter(
        limits.requests_per_s,
        concurrency,
        [Quota(number, window_s) for number, window_s in limits.quotas()],
        sources.max_wait_s,
        folder / f"{name}.rates" if folder else None,
    )


def _name(quota: Quota) -> str:
    return f"{quota.window_s:g}"


def come_back(wait_s: float) -> str:
    """The end of a message: when the server may be asked again."""
    when = datetime.fromtimestamp(time.time() + wait_s, timezone.utc)
    return f"it may be asked again in {wait_s:.0f} s, at {when:%Y-%m-%d %H:%M:%S} UTC"
