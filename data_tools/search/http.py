"""HTTP for search sources: identifies the project, keeps the pace, obeys Retry-After, and gives up
in time."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx
import stamina

from data_tools.config import SourcesConfig
from data_tools.search.base import SourceError, SourceStopped
from data_tools.search.keys import Secrets
from data_tools.search.pages import PageStore, page_key
from data_tools.search.rates import LONGEST_PAUSE_S, RateLimiter, come_back
from data_tools.work.identity import user_agent

# 50 results with long descriptions are 0.5 MB; a larger body is no answer to our request.
MAX_ANSWER_BYTES = 20_000_000
CONNECT_TIMEOUT_S = 10.0
FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.5, 10.0
SHOWN_CHARS = 300

# Retries are counted in the stage's summary; a warning line for each would hide the progress bar.
logging.getLogger("stamina").setLevel(logging.ERROR)
# At INFO these log every URL, at DEBUG every header, and so the keys.
for library in ("httpx", "httpcore"):
    logging.getLogger(library).setLevel(logging.WARNING)


class HttpError(SourceError):
    """The server answered with an error status that will not change by itself."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status, self.message = status, message

    def __str__(self) -> str:
        return self.message


class _TryAgain(Exception):
    """The request failed, and another attempt may succeed. `paused`: the limiter already has the
    pause that the server asked for."""

    def __init__(self, reason: str, paused: bool = False) -> None:
        super().__init__(reason, paused)
        self.reason, self.paused = reason, paused


def never_busy(answer: Any) -> str | None:
    """For servers whose errors have an HTTP status of their own."""
    return None


class JsonClient:
    """Asks one endpoint for JSON; safe to call from several threads.

    `limiter` can be shared by clients of one server. `secrets` are removed from every message.
    `hints` maps an HTTP status to what the user can do about it. `heed` is called with the headers
    of every answer, which may state the server's quotas. A request whose answer is in `pages` is
    not sent again.
    """

    def __init__(
        self,
        endpoint: str,
        sources: SourcesConfig,
        limiter: RateLimiter,
        *,
        concurrency: int,
        secrets: Secrets | None = None,
        hints: Mapping[int, str] | None = None,
        heed: Callable[[Mapping[str, str]], None] | None = None,
        pages: PageStore | None = None,
    ) -> None:
        self.endpoint, self.limiter = endpoint, limiter
        self.timeout_s, self.max_attempts = sources.timeout_s, sources.max_attempts
        self.num_requests = self.num_retries = 0
        self._secrets, self._hints, self._heed = secrets or Secrets(), hints or {}, heed
        self._pages = pages
        self._count_lock = threading.Lock()
        self._client = httpx.Client(
            headers={"User-Agent": user_agent(sources.contact)},
            timeout=httpx.Timeout(self.timeout_s, connect=min(self.timeout_s, CONNECT_TIMEOUT_S)),
            limits=httpx.Limits(max_connections=concurrency),
            # a proxy that the environment names cannot reach the loopback of this machine
            trust_env=urlsplit(endpoint).hostname not in ("127.0.0.1", "::1", "localhost"),
        )

    def get(
        self,
        params: Mapping[str, str],
        busy: Callable[[Any], str | None] = never_busy,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """The answer to a GET as parsed JSON.

        After connection failures, 5xx, 429, and answers for which `busy` returns a reason, the
        request is sent again, `max_attempts` times in all, after the server's Retry-After or an
        exponential backoff. Raises SourceStopped for a wait longer than the limiter's max_wait_s,
        HttpError for another HTTP status, and SourceError for everything else and when all attempts
        failed.
        """
        return self._ask("GET", busy, params=params, headers=headers)

    def get_once(
        self,
        params: Mapping[str, str],
        whole: Callable[[Any], bool],
        busy: Callable[[Any], str | None] = never_busy,
        headers: Mapping[str, str] | None = None,
        keys: Mapping[str, str] | None = None,
    ) -> Any:
        """As `get`, but an answer that is in `pages` is taken from there; a new one for which
        `whole` is true is put there. `keys` are further parameters of the request that are written
        nowhere and do not identify it."""
        asked = {**params, **(keys or {})}
        if self._pages is None:
            return self.get(asked, busy, headers)
        key = page_key(self.endpoint, params)
        answer = self._pages.get(key)
        if answer is None:
            answer = self.get(asked, busy, headers)
            if whole(answer):
                self._pages.put(key, answer)
        return answer

    def post(self, form: Mapping[str, str]) -> Any:
        """The answer to a POST of form fields, with the attempts and errors of `get`."""
        return self._ask("POST", never_busy, data=form)

    def close(self) -> None:
        """Give up waiting requests and close the connections."""
        self.limiter.close()
        self._client.close()

    def _ask(self, method: str, busy: Callable[[Any], str | None], **request: Any) -> Any:
        # no timeout of stamina: the number of attempts is bounded, and so is the time of each
        # (timeout_s, max_wait_s)
        try:
            for attempt in stamina.retry_context(
                on=_backoff,
                attempts=self.max_attempts,
                timeout=None,
                wait_initial=FIRST_BACKOFF_S,
                wait_max=LAST_BACKOFF_S,
            ):
                with attempt:
                    return self._ask_once(method, busy, request, is_retry=attempt.num > 1)
        except _TryAgain as error:
            raise SourceError(f"{error.reason} ({self.max_attempts} attempts)") from None
        raise AssertionError("stamina gave no attempt")

    def _ask_once(
        self,
        method: str,
        busy: Callable[[Any], str | None],
        request: Mapping[str, Any],
        is_retry: bool,
    ) -> Any:
        self.limiter.take()
        with self._count_lock:
            self.num_requests += 1
            self.num_retries += is_retry
        response, body = self._fetch(method, request)
        if self._heed is not None:
            self._heed(response.headers)
        text = body.decode("utf-8", "replace")
        message = f"HTTP {response.status_code}: {self.shown(text)}"
        if hint := self._hints.get(response.status_code):
            message += f" ({hint})"
        if response.status_code == 429 or response.status_code >= 500:
            raise self._try_again(message, response)
        if response.status_code != 200:
            raise self._refusal(message, response)
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError):  # nested 100,000 deep
            raise SourceError(f"the answer is not JSON; {message}") from None
        if reason := busy(answer):
            raise self._try_again(self.shown(reason), response)
        return answer

    def _fetch(self, method: str, request: Mapping[str, Any]) -> tuple[httpx.Response, bytes]:
        # httpx bounds each read, not the whole answer: a server that sends byte by byte could hold
        # a thread for ever
        deadline = time.monotonic() + self.timeout_s
        body = bytearray()
        try:
            with self._client.stream(method, self.endpoint, **request) as response:
                for block in response.iter_bytes():
                    body += block
                    if len(body) > MAX_ANSWER_BYTES:
                        raise SourceError(f"the answer is larger than {MAX_ANSWER_BYTES} bytes")
                    if time.monotonic() > deadline:
                        raise _TryAgain(f"no whole answer within {self.timeout_s:g} s")
        except httpx.HTTPError as error:
            reason = self._secrets.hidden_in(f"{type(error).__name__}: {error}")
            # from None: the httpx error holds the URL, which may hold a key
            raise _TryAgain(reason) from None
        return response, bytes(body)

    def shown(self, text: str) -> str:
        """A server's text, fit for a message: on one line, at most SHOWN_CHARS long, without
        keys."""
        return self._secrets.hidden_in(" ".join(text.split()))[:SHOWN_CHARS]

    def _refusal(self, message: str, response: httpx.Response) -> SourceError:
        if where := response.headers.get("Location"):
            message += f" -> {self.shown(where)}: give that endpoint"
        return HttpError(response.status_code, message)

    def _try_again(self, reason: str, response: httpx.Response) -> Exception:
        wait_s = retry_after_s(response.headers.get("Retry-After", ""))
        if wait_s is None:
            return _TryAgain(reason)
        self.limiter.pause(wait_s)
        if wait_s > self.limiter.max_wait_s:
            asks = f"it asks for {wait_s:.0f} s of patience"
            return SourceStopped(f"{reason} ({asks}: {come_back(wait_s)})")
        return _TryAgain(reason, paused=True)


def retry_after_s(value: str, now: datetime | None = None) -> float | None:
    """Seconds, a year at most, that a Retry-After header (seconds or HTTP-date; RFC 9110, section
    10.2.3) asks for; None if it is empty or unreadable."""
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(float(value), LONGEST_PAUSE_S)
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return None
    when = when if when.tzinfo else when.replace(tzinfo=timezone.utc)
    wait_s = (when - (now or datetime.now(timezone.utc))).total_seconds()
    return min(max(0.0, wait_s), LONGEST_PAUSE_S)


def _backoff(error: Exception) -> bool | float:
    """stamina's hook: False raises the error, True waits stamina's backoff, a number is the seconds
    to wait instead."""
    if not isinstance(error, _TryAgain):
        return False
    return 0.0 if error.paused else True
