"""Brave image search, https://api-dashboard.search.brave.com/documentation/services/image-search.

It is asked only with a permission (sources.brave.permission: the plan) and the key in
BRAVE_API_KEY. One request per query: the API has no further pages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_tools.config import SourcesConfig
from data_tools.search.base import Candidate, SourceError, SourceStopped
from data_tools.search.fields import pixels, search_words, visible, web_address
from data_tools.search.http import HttpError, JsonClient
from data_tools.search.keys import Secrets, key_from
from data_tools.search.limits import brave_limits
from data_tools.search.rates import Quota, RateLimiter, limiter_for

CONCURRENCY = 2
KEY = "BRAVE_API_KEY"
KEY_FROM = "https://api-dashboard.search.brave.com/app/keys"
MAX_QUERY_CHARS, MAX_QUERY_WORDS = 400, 50
# Shorter windows are kept by the pace, and by the pause that a header asks for.
SHORTEST_QUOTA_S = 60.0


class BraveSource:
    """A SearchSource; see data_tools/search/base.py."""

    name = "brave"

    def __init__(self, sources: SourcesConfig, folder: Path | None = None) -> None:
        config = sources.brave
        self.config = config
        self.address = config.endpoint
        self.concurrency = CONCURRENCY
        self.settings: dict[str, object] = {
            "endpoint": config.endpoint,
            "country": config.country,
            "search_lang": config.search_lang,
        }
        key = key_from(KEY, "source=brave", KEY_FROM)
        self._headers = {"X-Subscription-Token": key, "Accept": "application/json"}
        limits = brave_limits(config)
        self._most = limits.max_per_query
        limiter = limiter_for(limits, CONCURRENCY, sources, self.name, folder)
        self._client = JsonClient(
            config.endpoint,
            sources,
            limiter,
            concurrency=CONCURRENCY,
            secrets=Secrets([key]),
            heed=lambda headers: heed(headers, limiter),
        )

    def search(self, query: str, limit: int) -> Iterator[Candidate]:
        """Ask once, for at most 200 results. Raises SourceError."""
        words = search_words(query, MAX_QUERY_CHARS, MAX_QUERY_WORDS)
        if not words:
            return
        params = {
            "q": words,
            "count": str(min(limit, self._most)),
            "country": self.config.country,
            "search_lang": self.config.search_lang,
            "safesearch": "strict",
            "spellcheck": "false",  # with "true" the server may answer another query
        }
        try:
            answer = self._client.get(params, headers=self._headers)
        except HttpError as error:
            if error.status == 401:
                raise SourceStopped(f"{KEY} is refused: {error}") from None
            raise
        results = answer.get("results") if isinstance(answer, dict) else None
        if not isinstance(results, list):
            raise SourceError(f"{query!r}: the answer has no list of results: {str(answer)[:100]}")
        extra = answer.get("extra")
        offensive = isinstance(extra, dict) and bool(extra.get("might_be_offensive"))
        seen: set[str] = set()
        for result in results:
            candidate = _candidate(result, offensive) if isinstance(result, dict) else None
            if candidate is not None and candidate.url not in seen and len(seen) < limit:
                seen.add(candidate.url)
                yield candidate

    def counts(self) -> dict[str, int]:
        return {"requests": self._client.num_requests, "retries": self._client.num_retries}

    def close(self) -> None:
        self._client.close()


def heed(headers: Mapping[str, str], limiter: RateLimiter) -> None:
    """Take over the quotas and pauses that an answer's headers state.

    Each header has one entry per window: `X-RateLimit-Policy: 1;w=1, 15000;w=2592000`,
    `X-RateLimit-Remaining: 0, 14523`, `X-RateLimit-Reset: 1, 1419704` (seconds). A limit of 0 means
    no limit.
    """
    policy = re.findall(r"\b(\d{1,12})\s*;\s*w=(\d{1,12})\b", headers.get("X-RateLimit-Policy", ""))
    remaining = re.findall(r"\b\d{1,12}\b", headers.get("X-RateLimit-Remaining", ""))
    resets = re.findall(r"\b\d{1,12}\b", headers.get("X-RateLimit-Reset", ""))
    windows = [
        (int(most), float(window_s), int(left), float(reset_s))
        for (most, window_s), left, reset_s in zip(policy, remaining, resets)
        if int(most) > 0 and float(window_s) > 0
    ]
    quotas = [
        Quota(most, window_s, max(0, most - left))
        for most, window_s, left, _ in windows
        if window_s >= SHORTEST_QUOTA_S
    ]
    if quotas:
        limiter.adopt(quotas)
    pause_s = max((reset_s for _, _, left, reset_s in windows if left == 0), default=0.0)
    if pause_s > 0:
        limiter.pause(pause_s)


def _candidate(result: dict[str, Any], offensive: bool) -> Candidate | None:
    """The candidate of a result; None if it has no image address or no title. Brave gives no
    licence and no author."""
    properties = result.get("properties")
    image = properties if isinstance(properties, dict) else {}
    url, caption = web_address(image.get("url")), visible(result.get("title"))
    if not url or not caption:
        return None
    return Candidate(
        url=url,
        caption=caption,
        page_url=web_address(result.get("url")),
        width=pixels(image.get("width")),
        height=pixels(image.get("height")),
        mature=offensive,
    )
