"""Wikimedia Commons search, https://www.mediawiki.org/wiki/API:Search with API:Imageinfo.

Etiquette (https://www.mediawiki.org/wiki/API:Etiquette): a contact in the User-Agent, `maxlag`, at
most three requests at a time, Retry-After obeyed; thumbnails instead of originals.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_tools.config import SourcesConfig
from data_tools.ground.fields import hashable
from data_tools.search.base import Candidate, SourceError
from data_tools.search.commons_text import commons_text
from data_tools.search.fields import encodable, pixels, search_words
from data_tools.search.http import JsonClient
from data_tools.search.limits import commons_limits
from data_tools.search.pages import page_store
from data_tools.search.rates import limiter_for

# Errors that are gone after a while. Commons sends them as HTTP 200 with {"error": {"code": ...}}.
BUSY_CODES = frozenset({"maxlag", "ratelimited", "readonly", "cirrussearch-too-busy-error"})
# Commons gives no result beyond the 10,000th; this ends a search on a server that always continues.
MAX_ANSWERS = 10_000
WEB_FORMATS = frozenset({"image/gif", "image/jpeg", "image/png", "image/webp"})
METADATA = (
    "ImageDescription",
    "LicenseShortName",
    "LicenseUrl",
    "Artist",
    "Credit",
    "UsageTerms",
    "AttributionRequired",
    "Categories",
)


class CommonsSource:
    """A SearchSource; see data_tools/search/base.py."""

    name = "commons"

    def __init__(self, sources: SourcesConfig, folder: Path | None = None) -> None:
        config = sources.commons
        self.config = config
        self.address = config.endpoint
        self.concurrency = config.concurrency
        self.settings: dict[str, object] = {
            "endpoint": config.endpoint,
            # as hashed, so that the cursor files of versions before are found
            "thumbnail_width": hashable(config)["thumbnail_width"],
        }
        self._client = JsonClient(
            config.endpoint,
            sources,
            limiter_for(commons_limits(config), config.concurrency, sources, self.name, folder),
            concurrency=config.concurrency,
            pages=page_store(self.name, folder),
        )

    def search(self, query: str, limit: int) -> Iterator[Candidate]:
        """Follow `continue` until `limit` candidates or the end. Raises SourceError.

        The imageinfo of one batch of results can come in several answers. The batch is complete,
        and can be sorted, with the answer that has `batchcomplete`.
        """
        words = search_words(query)
        if not words:  # for an empty search Commons gives every picture it has
            return
        params = self._params(words, limit)
        seen: set[int] = set()
        batch: dict[int, dict[str, Any]] = {}
        continued: dict[str, str] = {}
        for _ in range(MAX_ANSWERS):
            answer = self._client.get_once({**params, **continued}, _is_whole, _busy_reason)
            for page in _pages(answer, query):
                batch[page["pageid"]] = {**batch.get(page["pageid"], {}), **page}
            before, continued = continued, _continuation(answer)
            if "batchcomplete" in answer or not continued:
                for page in sorted(batch.values(), key=lambda page: page["index"]):
                    candidate = _candidate(page, self.config.thumbnail_width)
                    if candidate is None or page["pageid"] in seen:
                        continue  # it moved to a later batch between two requests
                    seen.add(page["pageid"])
                    yield candidate
                    if len(seen) == limit:
                        return
                batch = {}
            if not continued:
                return
            if continued == before:
                raise SourceError(f"{query!r}: the server sends the same `continue` again")
        raise SourceError(f"{query!r}: no end after {MAX_ANSWERS} answers")

    def counts(self) -> dict[str, int]:
        return {"requests": self._client.num_requests, "retries": self._client.num_retries}

    def close(self) -> None:
        self._client.close()

    def _params(self, words: str, limit: int) -> dict[str, str]:
        params = {
            "action": "query",
            "format": "json",
            "formatversion": "2",
            "generator": "search",
            "gsrnamespace": "6",
            "gsrsearch": f"filetype:bitmap {words}",
            "gsrlimit": str(min(self.config.page_size, limit)),
            "prop": "imageinfo",
            "iiprop": "url|size|mime|sha1|extmetadata|user|timestamp",
            "iiextmetadatafilter": "|".join(METADATA),
            "iiextmetadatalanguage": "en",
            "maxlag": "5",
        }
        if self.config.thumbnail_width:
            params["iiurlwidth"] = str(self.config.thumbnail_width)
        return params


def _is_whole(answer: Any) -> bool:
    return isinstance(answer, dict) and "error" not in answer


def _busy_reason(answer: Any) -> str | None:
    error = answer.get("error") if isinstance(answer, dict) else None
    if isinstance(error, dict) and error.get("code") in BUSY_CODES:
        return f"{error['code']}: {error.get('info', '')}"
    return None


def _pages(answer: Any, query: str) -> list[dict[str, Any]]:
    """The pages of one answer that have the fields needed to merge and sort them. Raises
    SourceError for an answer that is an error or no object."""
    if not isinstance(answer, dict):
        raise SourceError(f"{query!r}: the answer is JSON but no object: {str(answer)[:100]}")
    if error := answer.get("error"):
        reason = f"{error.get('code')}: {error.get('info')}" if isinstance(error, dict) else error
        raise SourceError(f"{query!r}: {reason}")
    result = answer.get("query")
    pages = result.get("pages") if isinstance(result, dict) else None
    return [
        page
        for page in (pages if isinstance(pages, list) else [])
        if isinstance(page, dict)
        and isinstance(page.get("pageid"), int)
        and isinstance(page.get("index"), int)
    ]


def _continuation(answer: dict[str, Any]) -> dict[str, str]:
    """The parameters that ask for the next answer, as the server gave them; empty after the
    last."""
    continued = answer.get("continue")
    return continued if isinstance(continued, dict) else {}


def _candidate(page: dict[str, Any], thumbnail_width: int | None) -> Candidate | None:
    """The candidate of a page; None if it has no usable image address, as deleted files, which have
    no imageinfo."""
    infos = page.get("imageinfo")
    info = infos[0] if isinstance(infos, list) and infos else None
    if not isinstance(info, dict):
        return None
    url = _image_address(info, thumbnail_width)
    if not url.startswith(("http://", "https://")):
        return None
    metadata = info.get("extmetadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    return Candidate(
        url=url,
        caption=_text(metadata, "ImageDescription") or clean_title(str(page.get("title", ""))),
        page_url=encodable(str(info.get("descriptionurl") or "")),
        license=_text(metadata, "LicenseShortName") or _text(metadata, "UsageTerms"),
        license_url=_text(metadata, "LicenseUrl"),
        attribution=_text(metadata, "Artist") or _text(metadata, "Credit"),
        width=pixels(info.get("width")),
        height=pixels(info.get("height")),
    )


def _image_address(info: dict[str, Any], thumbnail_width: int | None) -> str:
    """The thumbnail, or the file itself if it is no wider: a thumbnail of its own width is none of
    those that Commons makes. Formats of the web only; of others, thumbnails are JPEG or PNG."""
    original, width = str(info.get("url") or ""), pixels(info.get("width"))
    is_small = thumbnail_width is not None and width is not None and width <= thumbnail_width
    if is_small and original and info.get("mime") in WEB_FORMATS:
        return original
    return str(info.get("thumburl") or original)


def clean_title(title: str) -> str:
    """A file's title as text: "File:Ice_hockey 01.jpg" -> "Ice hockey 01"."""
    name = re.sub(r"^File:", "", title)
    name = re.sub(r"\.\w{2,5}$", "", name)
    return encodable(" ".join(name.replace("_", " ").split()))


def _text(metadata: dict[str, Any], name: str) -> str:
    entry = metadata.get(name)
    value = entry.get("value") if isinstance(entry, dict) else None
    return encodable(commons_text(str(value))) if value is not None else ""
