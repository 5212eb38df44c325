"""SearXNG, https://docs.searxng.org/dev/search_api.html: a metasearch engine that the user runs.

Its answers have no licences. The search engines behind it permit no automated use; whoever runs the
instance is responsible for that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_tools.config import SourcesConfig
from data_tools.search.base import Candidate, SourceError
from data_tools.search.fields import pixels, plain, search_words, visible, web_address
from data_tools.search.http import JsonClient
from data_tools.search.limits import searxng_limits
from data_tools.search.rates import limiter_for

CONCURRENCY = 1
HINTS = {
    403: "the instance gives no JSON: add json to search.formats in its settings.yml",
    429: "its limiter takes us for a bot: set server.limiter to false in its settings.yml",
}


class SearxngSource:
    """A SearchSource; see data_tools/search/base.py."""

    name = "searxng"

    def __init__(self, sources: SourcesConfig, folder: Path | None = None) -> None:
        config = sources.searxng
        self.config = config
        self.address = config.endpoint
        self.concurrency = CONCURRENCY
        self.settings: dict[str, object] = {
            "endpoint": config.endpoint,
            "language": config.language,
            "max_pages": config.max_pages,
        }
        self._client = JsonClient(
            f"{config.endpoint.rstrip('/')}/search",
            sources,
            limiter_for(searxng_limits(config), CONCURRENCY, sources, self.name, folder),
            concurrency=CONCURRENCY,
            hints=HINTS,
        )

    def search(self, query: str, limit: int) -> Iterator[Candidate]:
        """Ask page by page until `limit`, `max_pages`, or a page without new results. Raises
        SourceError, also if there is no result because no engine answered: that is not "nothing
        found"."""
        words = search_words(query)
        if not words:
            return
        seen: set[str] = set()
        for page in range(1, self.config.max_pages + 1):
            answer = self._page(words, page)
            results = answer.get("results")
            before = len(seen)
            for result in results if isinstance(results, list) else []:
                candidate = _candidate(result) if isinstance(result, dict) else None
                if candidate is not None and candidate.url not in seen:
                    seen.add(candidate.url)
                    yield candidate
                    if len(seen) == limit:
                        return
            if not seen and (reasons := _unresponsive(answer)):
                raise SourceError(
                    f"{query!r}: engines did not answer: {self._client.shown(reasons)}"
                )
            if len(seen) == before:
                return

    def counts(self) -> dict[str, int]:
        return {"requests": self._client.num_requests, "retries": self._client.num_retries}

    def close(self) -> None:
        self._client.close()

    def _page(self, words: str, page: int) -> dict[str, Any]:
        params = {
            "q": words,
            "categories": "images",
            "format": "json",
            "pageno": str(page),
            "language": self.config.language,
            "safesearch": "2",
        }
        answer = self._client.get(params)
        if not isinstance(answer, dict):
            shown = self._client.shown(str(answer))
            raise SourceError(f"the answer is JSON but no object: {shown}")
        return answer


def _unresponsive(answer: dict[str, Any]) -> str:
    """The engines that did not answer, "bing images: timeout, flickr: access denied"; empty if all
    did."""
    engines = answer.get("unresponsive_engines")
    return ", ".join(
        ": ".join(map(str, entry)) if isinstance(entry, list) else str(entry)
        for entry in (engines if isinstance(engines, list) else [])
    )


def _candidate(result: dict[str, Any]) -> Candidate | None:
    """The candidate of a result; None if it has no image address ("data:..." is none) or no
    text."""
    url = web_address(result.get("img_src"))
    caption = visible(result.get("title")) or visible(result.get("content"))
    if not url or not caption:
        return None
    size = re.match(r"(\d{1,6})\s*[x×*]\s*(\d{1,6})", plain(result.get("resolution")))
    return Candidate(
        url=url,
        caption=caption,
        page_url=web_address(result.get("url")),
        width=pixels(size[1]) if size else None,
        height=pixels(size[2]) if size else None,
    )
