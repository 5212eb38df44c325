"""Flickr search, https://www.flickr.com/services/api/flickr.photos.search.html.

It is asked only with a permission (sources.flickr.permission) and the key in FLICKR_API_KEY. The
API wants the key as a URL parameter, so no message may contain the URL of a request.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
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
    visible,
    web_address,
)
from data_tools.search.http import JsonClient
from data_tools.search.keys import Secrets, key_from
from data_tools.search.limits import flickr_limits
from data_tools.search.pages import page_store
from data_tools.search.rates import limiter_for

CONCURRENCY = 2
KEY = "FLICKR_API_KEY"
KEY_FROM = "https://www.flickr.com/services/api/misc.api_keys.html"
# After this number of results of one search, the server repeats its last page.
RESULT_WINDOW = 4000
# Upload dates in seconds since the epoch; Flickr began in February 2004. The end is fixed, not
# "now", so that a search that is repeated is cut into the same windows.
FIRST_UPLOAD, LAST_UPLOAD = 1_075_593_600, 2**31 - 1
# Ends a search on a server with wrong totals, for which windows would be halved for ever.
MAX_REQUESTS = 2000
# Errors that are gone after a while. Flickr sends them as HTTP 200 with {"stat": "fail", "code":
# ...}.
BUSY_CODES = frozenset({10, 105, 106})
INVALID_KEY_CODE = 100
# Best first: 1024 px spares Flickr the originals and leaves enough for any training size.
SIZES = ("l", "c", "z", "o", "n")
EXTRAS = "description,license,date_upload,owner_name,original_format,o_dims,tags,url_o,url_l,url_c"
# Titles given by a camera, which say nothing: "IMG_1234", "DSC00017", "P1010042".
CAMERA_NAME = re.compile(
    r"(_?IMG|DSC[FN]?|_?MG|PICT|DCP|SAM|P|MVI|CIMG|HPIM)?[-_ ]*\d{3,}\w?", re.I
)


@dataclass
class _Search:
    """The state of one query's search over its windows of upload dates."""

    query: str
    words: str
    limit: int
    seen: set[str] = field(default_factory=set)
    num_requests: int = 0

    @property
    def done(self) -> bool:
        return len(self.seen) >= self.limit


@dataclass(frozen=True)
class _Page:
    total: int
    num_pages: int
    photos: list[dict[str, Any]]


class FlickrSource:
    """A SearchSource; see data_tools/search/base.py."""

    name = "flickr"

    def __init__(self, sources: SourcesConfig, folder: Path | None = None) -> None:
        config = sources.flickr
        self.config = config
        self.address = config.endpoint
        self.concurrency = CONCURRENCY
        self.settings: dict[str, object] = {
            "endpoint": config.endpoint,
            "licenses": sorted(config.licenses),
        }
        self._key = key_from(KEY, "source=flickr", KEY_FROM)
        limits = flickr_limits(config)
        self._page_size = limits.page_size
        self._client = JsonClient(
            config.endpoint,
            sources,
            limiter_for(limits, CONCURRENCY, sources, self.name, folder),
            concurrency=CONCURRENCY,
            secrets=Secrets([self._key]),
            pages=page_store(self.name, folder),
        )
        self._licenses: dict[int, tuple[str, str]] = {}
        self._licenses_lock = threading.Lock()

    def search(self, query: str, limit: int) -> Iterator[Candidate]:
        """Yield the RESULT_WINDOW most relevant results. For a higher limit, go on with windows of
        the upload date, newest first; a window with more than RESULT_WINDOW results is halved.
        Raises SourceError."""
        words = search_words(query)
        if not words:
            return
        licenses = self._known_licenses()
        search = _Search(query, words, limit)
        total = yield from self._window(search, licenses, {})
        if total <= RESULT_WINDOW:
            return
        windows = [(FIRST_UPLOAD, LAST_UPLOAD)]
        while windows and not search.done:
            first, last = windows.pop()
            dates = {"min_upload_date": str(first), "max_upload_date": str(last)}
            total = yield from self._window(search, licenses, dates, halve=last > first)
            if total > RESULT_WINDOW and last > first:
                middle = (first + last) // 2
                windows += [(first, middle), (middle + 1, last)]

    def counts(self) -> dict[str, int]:
        return {"requests": self._client.num_requests, "retries": self._client.num_retries}

    def close(self) -> None:
        self._client.close()

    def _window(
        self,
        search: _Search,
        licenses: dict[int, tuple[str, str]],
        dates: dict[str, str],
        halve: bool = False,
    ) -> Generator[Candidate, None, int]:
        """Yield the results between two dates, page by page; returns their total. With `halve`, a
        window that holds too many is left after its first page."""
        page_size = min(self._page_size, RESULT_WINDOW, max(1, search.limit))
        most_pages = RESULT_WINDOW // page_size
        total = 0
        for number_of_page in range(1, most_pages + 1):
            page = self._page(search, licenses, dates, page_size, number_of_page)
            total = max(total, page.total)  # the total can change between pages
            for photo in page.photos:
                key = str(photo.get("id"))
                candidate = _candidate(photo, licenses)
                if candidate is None or key in search.seen:
                    continue
                search.seen.add(key)
                yield candidate
                if search.done:
                    return total
            too_many = halve and total > RESULT_WINDOW
            if not page.photos or number_of_page >= page.num_pages or too_many:
                return total
        return total

    def _page(
        self,
        search: _Search,
        licenses: dict[int, tuple[str, str]],
        dates: dict[str, str],
        page_size: int,
        number_of_page: int,
    ) -> _Page:
        search.num_requests += 1
        if search.num_requests > MAX_REQUESTS:
            raise SourceError(f"{search.query!r}: no end after {MAX_REQUESTS} requests")
        wanted = self.config.licenses or sorted(licenses.keys() - {0})
        answer = self._ask(
            {
                "method": "flickr.photos.search",
                "text": search.words,
                "license": ",".join(map(str, wanted)),
                "sort": "relevance",
                "safe_search": "1",
                "content_types": "0",
                "media": "photos",
                "per_page": str(page_size),
                "page": str(number_of_page),
                "extras": f"{EXTRAS},url_z,url_n",
                **dates,
            }
        )
        photos = answer.get("photos")
        if not isinstance(photos, dict) or not isinstance(photos.get("photo"), list):
            raise SourceError(f"{search.query!r}: the answer has no list of photos")
        return _Page(
            total=number(photos.get("total")) or 0,
            num_pages=number(photos.get("pages")) or 0,
            photos=[photo for photo in photos["photo"] if isinstance(photo, dict)],
        )

    def _known_licenses(self) -> dict[int, tuple[str, str]]:
        """Licence id -> (name, address); the server is asked once. The ids are listed by the API
        alone: they were added over the years, in no order."""
        with self._licenses_lock:
            if not self._licenses:
                answer = self._ask({"method": "flickr.photos.licenses.getInfo"})
                listed = answer.get("licenses")
                entries = listed.get("license") if isinstance(listed, dict) else None
                for entry in entries if isinstance(entries, list) else []:
                    if isinstance(entry, dict) and (key := number(entry.get("id"))) is not None:
                        url = web_address(entry.get("url"))
                        name = creative_commons_name(url) or plain(entry.get("name"))
                        self._licenses[key] = (name, url)
                if not self._licenses:
                    raise SourceError("flickr.photos.licenses.getInfo lists no licence")
            return self._licenses

    def _ask(self, params: dict[str, str]) -> dict[str, Any]:
        answer = self._client.get_once(
            {**params, "format": "json", "nojsoncallback": "1"},
            _is_whole,
            _busy_reason,
            keys={"api_key": self._key},
        )
        if not isinstance(answer, dict):
            raise SourceError(
                f"the answer is JSON but no object: {self._client.shown(str(answer))}"
            )
        if answer.get("stat") != "ok":
            reason = self._client.shown(f"{answer.get('code')}: {answer.get('message')}")
            if number(answer.get("code")) == INVALID_KEY_CODE:
                raise SourceStopped(f"{KEY} is refused: {reason}")
            raise SourceError(f"{params['method']}: {reason}")
        return answer


def _is_whole(answer: Any) -> bool:
    return isinstance(answer, dict) and answer.get("stat") == "ok"


def _busy_reason(answer: Any) -> str | None:
    if isinstance(answer, dict) and number(answer.get("code")) in BUSY_CODES:
        return f"{answer['code']}: {answer.get('message', '')}"
    return None


def _candidate(photo: dict[str, Any], licenses: dict[int, tuple[str, str]]) -> Candidate | None:
    """The candidate of a photo; None if it has no image address or no text."""
    size, url = next(
        ((size, url) for size in SIZES if (url := web_address(photo.get(f"url_{size}")))), ("", "")
    )
    described = photo.get("description")
    description = described.get("_content") if isinstance(described, dict) else described
    caption = caption_of(
        plain(photo.get("title")), visible(description), plain(photo.get("tags")).split()
    )
    if not url or not caption:
        return None
    license_id = number(photo.get("license"))
    known = licenses.get(license_id) if license_id is not None else None
    license_name, license_url = known or ("", "")
    owner, key = plain(photo.get("owner")), plain(str(photo.get("id") or ""))
    return Candidate(
        url=url,
        caption=caption,
        page_url=f"https://www.flickr.com/photos/{owner}/{key}" if owner and key else "",
        license=license_name,
        license_url=license_url,
        attribution=plain(photo.get("ownername")),
        width=pixels(photo.get("o_width")) or pixels(photo.get(f"width_{size}")),
        height=pixels(photo.get("o_height")) or pixels(photo.get(f"height_{size}")),
    )


def caption_of(title: str, description: str, tags: list[str]) -> str:
    """The caption: title and description, "Roof. A cat sleeps on it"; the tags if both are
    empty."""
    if CAMERA_NAME.fullmatch(title):
        title = ""
    if title and description and title.lower() not in description.lower():
        return f"{title}{'' if title[-1] in '.!?' else '.'} {description}"
    return description or title or ", ".join(tags)
