"""Openverse, https://api.openverse.org/v1/: openly licensed images of many collections.

It is asked only with a permission (sources.openverse.permission). With OPENVERSE_CLIENT_ID and
OPENVERSE_CLIENT_SECRET it is asked with an access token, which is fetched when needed and kept in
memory only; without them anonymously, for 20 results per request.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_tools.config import SourcesConfig
from data_tools.search.base import Candidate, SourceError, SourceStopped
from data_tools.search.fields import (
    creative_commons_name,
    number,
    pixels,
    plain,
    search_words,
    web_address,
)
from data_tools.search.http import HttpError, JsonClient
from data_tools.search.keys import Secrets, key_from
from data_tools.search.limits import OPENVERSE_KEYS, openverse_limits
from data_tools.search.pages import page_store
from data_tools.search.rates import Quota, RateLimiter, limiter_for

CONCURRENCY = 2
# The server cuts a longer query and does not say so.
MAX_QUERY_CHARS = 200
# The server refuses later pages.
MAX_PAGE = 20
# A token that expires within this time is replaced before the next request.
TOKEN_MARGIN_S = 60.0
PERIODS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
KEYS_FROM = "https://api.openverse.org/v1/#tag/auth"


class OpenverseSource:
    """A SearchSource; see data_tools/search/base.py."""

    name = "openverse"

    def __init__(self, sources: SourcesConfig, folder: Path | None = None) -> None:
        config = sources.openverse
        self.config = config
        self.address = config.endpoint
        self.concurrency = CONCURRENCY
        self.settings: dict[str, object] = {
            "endpoint": config.endpoint,
            "license_type": config.license_type or "",  # names cursor files of before
            "results_per_query": config.results_per_query,
        }
        self._credentials = _credentials()
        self._secrets = Secrets(self._credentials)
        self._limits = openverse_limits(config, bool(self._credentials))
        limiter = limiter_for(self._limits, CONCURRENCY, sources, self.name, folder)
        self._images = JsonClient(
            f"{config.endpoint}images/",
            sources,
            limiter,
            concurrency=CONCURRENCY,
            secrets=self._secrets,
            heed=lambda headers: _heed(headers, limiter),
            pages=page_store(self.name, folder),
        )
        self._tokens = JsonClient(
            f"{config.endpoint}auth_tokens/token/",
            sources,
            limiter,
            concurrency=1,
            secrets=self._secrets,
        )
        self._token, self._token_ends = "", 0.0
        self._token_lock = threading.Lock()

    def search(self, query: str, limit: int) -> Iterator[Candidate]:
        """Ask page by page until `limit`, the server's cap or the end. Raises SourceError.

        `result_count` may change between pages, and results may come again; the code relies on
        neither.
        """
        words = search_words(query, MAX_QUERY_CHARS)
        if not words:
            return
        wanted = min(limit, self._limits.max_per_query)
        page_size = min(wanted, self._limits.page_size)
        seen: set[str] = set()
        for page in range(1, min(MAX_PAGE, -(-wanted // page_size)) + 1):
            answer = self._ask({**self._params(words, page_size), "page": str(page)})
            results = _results(answer, query)
            for result in results:
                candidate = _candidate(result)
                key = str(result.get("id") or result.get("url"))
                if candidate is None or key in seen:
                    continue
                seen.add(key)
                yield candidate
                if len(seen) == wanted:
                    return
            if not results or page >= (number(answer.get("page_count")) or 0):
                return

    def counts(self) -> dict[str, int]:
        clients = (self._images, self._tokens)
        return {
            "requests": sum(client.num_requests for client in clients),
            "retries": sum(client.num_retries for client in clients),
        }

    def close(self) -> None:
        self._images.close()
        self._tokens.close()

    def _params(self, words: str, page_size: int) -> dict[str, str]:
        params = {"q": words, "page_size": str(page_size), "mature": "false"}
        if self.config.license_type:
            params["license_type"] = self.config.license_type
        return params

    def _ask(self, params: Mapping[str, str]) -> dict[str, Any]:
        """The answer for one page. A token that the server does not accept any more is replaced
        once."""
        if not self._credentials:
            return self._images.get_once(params, _is_whole)
        token = self._current_token()
        try:
            return self._images.get_once(params, _is_whole, headers=_bearer(token))
        except HttpError as error:
            if error.status != 401:
                raise
        token = self._current_token(refused=token)
        try:
            return self._images.get_once(params, _is_whole, headers=_bearer(token))
        except HttpError as error:
            if error.status != 401:
                raise
            raise SourceStopped(f"a new access token is refused: {error}") from None

    def _current_token(self, refused: str = "") -> str:
        with self._token_lock:
            stale = time.monotonic() > self._token_ends - TOKEN_MARGIN_S
            if stale or self._token == refused:
                self._token, lasts_s = self._new_token()
                self._token_ends = time.monotonic() + lasts_s
            return self._token

    def _new_token(self) -> tuple[str, float]:
        client_id, client_secret = self._credentials
        form = {
            "grant_type": "client_credentials",
            "client_id": client_id,
            "client_secret": client_secret,
        }
        try:
            answer = self._tokens.post(form)
        except HttpError as error:
            raise SourceStopped(f"{' and '.join(OPENVERSE_KEYS)} are refused: {error}") from None
        token = answer.get("access_token") if isinstance(answer, dict) else None
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise SourceStopped("the token endpoint answers without an access_token")
        self._secrets.add(token)
        lasts_s = answer.get("expires_in")
        return token, float(lasts_s) if isinstance(lasts_s, (int, float)) else 0.0


def _credentials() -> tuple[str, ...]:
    """(client id, secret); empty if neither is set. Raises DataError if only one is."""
    if not any(os.environ.get(variable) for variable in OPENVERSE_KEYS):
        return ()
    return tuple(key_from(variable, "source=openverse", KEYS_FROM) for variable in OPENVERSE_KEYS)


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _heed(headers: Mapping[str, str], limiter: RateLimiter) -> None:
    """Take over quotas from headers such as `X-RateLimit-Limit-anon_burst: 20/min` and
    `X-RateLimit-Available-anon_burst: 7`.

    The names end with those of the server's throttles, which differ for callers with a key.
    """
    quotas = []
    for name in sorted(headers):
        scope = name.lower().partition("x-ratelimit-limit-")[2]
        rate = re.fullmatch(r"(\d{1,12})/([smhd])[a-z]*", headers[name].strip().lower())
        if scope and rate:
            available = number(headers.get(f"x-ratelimit-available-{scope}", ""))
            most = int(rate[1])
            used = 0 if available is None else max(0, most - available)
            quotas.append(Quota(most, PERIODS_S[rate[2]], used))
    if quotas:
        limiter.adopt(quotas)


def _is_whole(answer: Any) -> bool:
    return isinstance(answer, dict) and isinstance(answer.get("results"), list)


def _results(answer: Any, query: str) -> list[dict[str, Any]]:
    if not _is_whole(answer):
        raise SourceError(f"{query!r}: the answer has no list of results: {str(answer)[:100]}")
    return [result for result in answer["results"] if isinstance(result, dict)]


def _candidate(result: dict[str, Any]) -> Candidate | None:
    """The candidate of a result; None if it has no image address or no text. Openverse gives no
    descriptions: title and tags are all its text."""
    url = web_address(result.get("url"))
    caption = caption_of(plain(result.get("title")), result.get("tags"))
    if not url or not caption:
        return None
    license_url = web_address(result.get("license_url"))
    return Candidate(
        url=url,
        caption=caption,
        page_url=web_address(result.get("foreign_landing_url")),
        license=creative_commons_name(license_url) or _license(result),
        license_url=license_url,
        attribution=plain(result.get("creator")),
        width=pixels(result.get("width")),
        height=pixels(result.get("height")),
        mature=bool(result.get("mature") or result.get("unstable__sensitivity")),
    )


def caption_of(title: str, tags: Any) -> str:
    """The caption "Cat on a roof (red, tiles)": the title, then the tags that are not in it. Tags
    with an accuracy are left out: a classifier guessed them."""
    names = [
        plain(tag.get("name"))
        for tag in (tags if isinstance(tags, list) else [])
        if isinstance(tag, dict) and tag.get("accuracy") is None
    ]
    new = [name for name in dict.fromkeys(names) if name and name.lower() not in title.lower()]
    if not title or not new:
        return title or ", ".join(new)
    return f"{title} ({', '.join(new)})"


def _license(result: dict[str, Any]) -> str:
    """The licence's name from its short form: "by-sa", "4.0" -> "CC BY-SA 4.0"."""
    name, version = plain(result.get("license")).lower(), plain(result.get("license_version"))
    if not name:
        return ""
    known = {"cc0": "CC0", "pdm": "Public Domain Mark", "publicdomain": "Public domain"}
    return f"{known.get(name, f'CC {name.upper()}')} {version}".strip()
