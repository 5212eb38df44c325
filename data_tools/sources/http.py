"""HTTP for search sources: says who asks, keeps to a rate, waits when told to, gives up in time."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from urllib.parse import urlsplit

import httpx
import stamina

from data_tools.schema import DataError
from data_tools.sources.base import SourceError

# A server that asks for more is not asked again in this run.
MAX_RETRY_AFTER_S = 120.0
# 50 results with long descriptions are 0.5 MB; what is larger is no answer to what was asked.
MAX_ANSWER_BYTES = 20_000_000
CONNECT_TIMEOUT_S = 10.0
FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.5, 10.0
SHOWN_CHARS = 300

# Retries are counted into the stage's summary; one warning line each would hide the progress bar.
logging.getLogger("stamina").setLevel(logging.ERROR)


def user_agent(contact: str) -> str:
    """`clip-pretrain/VERSION (+contact)`, the form that operators ask bots for (w.wiki/4wJS)."""
    if not contact or not contact.isascii() or not contact.isprintable():
        raise DataError(f"sources.contact = {contact!r}: give an e-mail address or URL in ASCII")
    try:
        number = version("clip-pretrain")
    except PackageNotFoundError:  # run from a source tree that is not installed
        number = "source"
    return f"clip-pretrain/{number} (+{contact})"


class Closed(Exception):
    """The client was closed while a request waited for its turn."""


class TokenBucket:
    """`per_second` requests on average, at most `burst` at once, none before a pause is over."""

    def __init__(self, per_second: float, burst: int = 1) -> None:
        self.per_second, self.burst = per_second, burst
        self._tokens, self._filled_at = float(burst), time.monotonic()
        self._not_before = 0.0
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def take(self) -> None:
        """Wait for a token. Raises Closed when the bucket is closed meanwhile."""
        while (wait_s := self._try_take()) > 0:
            if self._closed.wait(wait_s):
                raise Closed

    def pause(self, seconds: float) -> None:
        """No token for anybody during the next `seconds`."""
        with self._lock:
            self._not_before = max(self._not_before, time.monotonic() + seconds)

    def close(self) -> None:
        self._closed.set()

    def _try_take(self) -> float:
        """Take a token (0.0) or say how many seconds to wait before trying again."""
        with self._lock:
            now = time.monotonic()
            gained = (now - self._filled_at) * self.per_second
            self._tokens, self._filled_at = min(self.burst, self._tokens + gained), now
            wait_s = max(self._not_before - now, (1 - self._tokens) / self.per_second)
            if wait_s > 0:
                return wait_s
            self._tokens -= 1
            return 0.0


class _TryAgain(Exception):
    """The request failed in a way that may pass. `paused`: the bucket already holds the wait."""

    def __init__(self, reason: str, paused: bool = False) -> None:
        super().__init__(reason, paused)
        self.reason, self.paused = reason, paused


class JsonClient:
    """GETs JSON from one endpoint; safe to call from several threads."""

    def __init__(
        self,
        endpoint: str,
        *,
        contact: str,
        requests_per_second: float,
        concurrency: int,
        timeout_s: float,
        max_attempts: int,
    ) -> None:
        self.endpoint, self.timeout_s, self.max_attempts = endpoint, timeout_s, max_attempts
        self.num_requests = self.num_retries = 0
        self._count_lock = threading.Lock()
        self._bucket = TokenBucket(requests_per_second, burst=concurrency)
        self._client = httpx.Client(
            headers={"User-Agent": user_agent(contact)},
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S)),
            limits=httpx.Limits(max_connections=concurrency),
            # a proxy of the environment cannot reach this machine's own loopback
            trust_env=urlsplit(endpoint).hostname not in ("127.0.0.1", "::1", "localhost"),
        )

    def get(self, params: Mapping[str, str], busy: Callable[[Any], str | None]) -> Any:
        """The answer as parsed JSON.

        Connection failures, 5xx, 429, and answers for which `busy` gives a reason are tried again,
        `max_attempts` in all, after the server's Retry-After or else an exponential backoff.
        Raises SourceError for everything else, and when the attempts are used up.
        """
        # no stamina timeout: attempts are bounded, and so is each (timeout_s, MAX_RETRY_AFTER_S)
        try:
            for attempt in stamina.retry_context(
                on=_backoff,
                attempts=self.max_attempts,
                timeout=None,
                wait_initial=FIRST_BACKOFF_S,
                wait_max=LAST_BACKOFF_S,
            ):
                with attempt:
                    return self._get_once(params, busy, is_retry=attempt.num > 1)
        except _TryAgain as error:
            raise SourceError(f"{error.reason} ({self.max_attempts} attempts)") from error
        raise AssertionError("stamina gave no attempt")

    def close(self) -> None:
        self._bucket.close()
        self._client.close()

    def _get_once(
        self, params: Mapping[str, str], busy: Callable[[Any], str | None], is_retry: bool
    ) -> Any:
        self._bucket.take()
        with self._count_lock:
            self.num_requests += 1
            self.num_retries += is_retry
        response, body = self._fetch(params)
        text = body.decode("utf-8", "replace")
        said = f"HTTP {response.status_code}: {' '.join(text.split())[:SHOWN_CHARS]}"
        if response.status_code == 429 or response.status_code >= 500:
            raise self._try_again(said, response)
        if response.status_code != 200:
            where = response.headers.get("Location")
            raise SourceError(said + (f" -> {where}: give that endpoint" if where else ""))
        try:
            answer = json.loads(text)
        except ValueError:
            raise SourceError(f"the answer is not JSON; {said}") from None
        if reason := busy(answer):
            raise self._try_again(reason, response)
        return answer

    def _fetch(self, params: Mapping[str, str]) -> tuple[httpx.Response, bytes]:
        # httpx bounds each read, not the whole: a server that drips bytes would hold us for ever
        deadline = time.monotonic() + self.timeout_s
        body = bytearray()
        try:
            with self._client.stream("GET", self.endpoint, params=params) as response:
                for block in response.iter_bytes():
                    body += block
                    if len(body) > MAX_ANSWER_BYTES:
                        raise SourceError(f"the answer is larger than {MAX_ANSWER_BYTES} bytes")
                    if time.monotonic() > deadline:
                        raise _TryAgain(f"no whole answer within {self.timeout_s:g} s")
        except httpx.HTTPError as error:
            raise _TryAgain(f"{type(error).__name__}: {error}") from error
        return response, bytes(body)

    def _try_again(self, reason: str, response: httpx.Response) -> Exception:
        wait_s = retry_after_s(response.headers.get("Retry-After", ""))
        if wait_s is None:
            return _TryAgain(reason)
        if wait_s > MAX_RETRY_AFTER_S:
            return SourceError(f"{reason} (it asks for {wait_s:.0f} s of patience: come back then)")
        self._bucket.pause(wait_s)
        return _TryAgain(reason, paused=True)


def retry_after_s(value: str, now: datetime | None = None) -> float | None:
    """Seconds that a Retry-After header (seconds or HTTP-date) asks for; None if it asks nothing.

    RFC 9110, section 10.2.3.
    """
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return None
    when = when if when.tzinfo else when.replace(tzinfo=timezone.utc)
    return max(0.0, (when - (now or datetime.now(timezone.utc))).total_seconds())


def _backoff(error: Exception) -> bool | float:
    """stamina's hook: False ends, True is its own backoff, a number of seconds replaces it."""
    if not isinstance(error, _TryAgain):
        return False
    return 0.0 if error.paused else True
