"""flickr.photos.search and flickr.photos.licenses.getInfo, over pictures in memory.

It has the difficulties that a client of the real API meets: errors as HTTP 200, a JSONP wrapper
unless it is declined, totals as numbers or text, fields only when `extras` asks for them,
descriptions as HTML, and after `result_window` results of one search the same page again and again.
https://www.flickr.com/services/api/flickr.photos.search.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any
from urllib.parse import quote

from data_tools.demo.mediawiki import Picture, SearchIndex, words_of
from data_tools.text.html_text import html_to_text
from tests.data_tools.search.doubles.replies import ApiLog, PageFaults, Reply, page_of

RESULT_WINDOW = 4000
MAX_PER_PAGE = 500
# The long side of each size that is made of a larger picture.
SIZES = {"l": 1024, "c": 800, "z": 640, "n": 320}
FIRST_UPLOAD, UPLOAD_SPAN_S = 1_100_000_000, 600_000_000
CC = "https://creativecommons.org"
LICENSES = {
    0: ("All Rights Reserved", ""),
    1: ("Attribution-NonCommercial-ShareAlike License", f"{CC}/licenses/by-nc-sa/2.0/"),
    2: ("Attribution-NonCommercial License", f"{CC}/licenses/by-nc/2.0/"),
    3: ("Attribution-NonCommercial-NoDerivs License", f"{CC}/licenses/by-nc-nd/2.0/"),
    4: ("Attribution License", f"{CC}/licenses/by/2.0/"),
    5: ("Attribution-ShareAlike License", f"{CC}/licenses/by-sa/2.0/"),
    6: ("Attribution-NoDerivs License", f"{CC}/licenses/by-nd/2.0/"),
    7: ("No known copyright restrictions", "https://www.flickr.com/commons/usage/"),
    8: ("United States Government Work", "http://www.usa.gov/copyright.shtml"),
    9: ("Public Domain Dedication (CC0)", f"{CC}/publicdomain/zero/1.0/"),
    10: ("Public Domain Mark", f"{CC}/publicdomain/mark/1.0/"),
    11: ("Attribution 4.0", f"{CC}/licenses/by/4.0/"),
    12: ("Attribution-ShareAlike 4.0", f"{CC}/licenses/by-sa/4.0/"),
}


class FlickrError(Exception):
    """An error: sent as HTTP 200 with {"stat": "fail", "code": ..., "message": ...}."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code, self.message = code, message


class Flickr:
    """`answer(params)` is the reply to one request."""

    def __init__(
        self,
        pictures: Sequence[Picture],
        faults: PageFaults | None = None,
        result_window: int = RESULT_WINDOW,
    ) -> None:
        self.hosts: dict[str, str] = {}
        self.log = ApiLog()
        self.api_key = "demo-flickr-key"
        self.result_window = result_window
        self._faults = faults or PageFaults()
        self._pictures = pictures
        self._num_requests = 0

    @cached_property
    def _index(self) -> SearchIndex:
        return SearchIndex(self._pictures)

    def answer(self, params: Mapping[str, str]) -> Reply:
        self._num_requests += 1
        if self._faults.turn(self._num_requests, self._faults.throttle_every):
            self.log.refused.append("throttle")
            return self._faults.throttled()
        try:
            body: dict[str, Any] = {**self._result(params), "stat": "ok"}
            self.log.requests.append(dict(params))
        except FlickrError as error:
            self.log.refused.append(str(error.code))
            body = {"stat": "fail", "code": error.code, "message": error.message}
        if params.get("nojsoncallback") == "1":
            return Reply(200, body)
        return Reply(200, f"jsonFlickrApi({json.dumps(body)})")

    def _result(self, params: Mapping[str, str]) -> dict[str, Any]:
        if params.get("api_key") != self.api_key:
            raise FlickrError(100, "Invalid API Key (Key not found)")
        if params.get("format") != "json":
            raise FlickrError(111, f'Format "{params.get("format", "")}" not found')
        if self._faults.turn(self._num_requests, self._faults.unavailable_every):
            raise FlickrError(105, "Service currently unavailable")
        if params.get("method") == "flickr.photos.licenses.getInfo":
            listed = [
                {"id": number, "name": name, "url": url} for number, (name, url) in LICENSES.items()
            ]
            return {"licenses": {"license": listed}}
        if params.get("method") == "flickr.photos.search":
            return {"photos": self._photos(params)}
        raise FlickrError(112, f'Method "{params.get("method", "")}" not found')

    def _photos(self, params: Mapping[str, str]) -> dict[str, Any]:
        if not params.get("text"):
            raise FlickrError(3, "Parameterless searches have been disabled. Please use ...")
        per_page = min(_integer(params, "per_page", 100), MAX_PER_PAGE)
        page = max(1, _integer(params, "page", 1))
        hits = [hit for hit in self._index.search(params["text"]) if _wanted(hit, params)]
        last_page = max(1, self.result_window // per_page)
        own_page = min(page, last_page)  # beyond the window the last page comes again
        shown, any_own = page_of(hits, own_page, per_page, self._faults.repeated)
        total = max(0, len(hits) - (page - 1) * self._faults.shrinks_by)
        return {
            "page": page,
            "pages": -(-len(hits) // per_page),
            "perpage": per_page,
            "total": str(total) if self._faults.text_totals else total,
            "photo": [self._photo(hit, params) for hit in shown] if any_own else [],
        }

    def _photo(self, hit: Picture, params: Mapping[str, str]) -> dict[str, Any]:
        width, height = hit.size()
        photo: dict[str, Any] = {
            "id": str(hit.page_id),
            "owner": f"{hit.page_id % 10**8}@N01",
            "secret": f"{hit.page_id % 16**10:010x}",
            "server": "65535",
            "farm": 66,
            "title": hit.name.rpartition(".")[0],
            "ispublic": 1,
            "isfriend": 0,
            "isfamily": 0,
        }
        if self._faults.turn(hit.page_id, self._faults.null_title_every):
            photo["title"] = None
        extras: dict[str, dict[str, Any]] = {
            "description": {"description": {"_content": hit.description}},
            "license": {"license": str(license_id(hit))},
            "date_upload": {"dateupload": str(upload_date(hit))},
            "owner_name": {"ownername": html_to_text(hit.artist) or "somebody"},
            "o_dims": {"o_width": str(width), "o_height": str(height)},
            "tags": {"tags": " ".join(words_of(html_to_text(hit.description)))},
            "url_o": self._size("o", hit, width, height, 0),
        }
        for size, side in SIZES.items():
            if max(width, height) > side:
                extras[f"url_{size}"] = self._size(size, hit, width, height, side)
        for name in params.get("extras", "").split(","):
            photo |= extras.get(name.strip(), {})
        return photo

    def _size(self, size: str, hit: Picture, width: int, height: int, side: int) -> dict[str, Any]:
        origin = f"http://{self.hosts[hit.site]}"
        if not side:
            return {"url_o": origin + hit.path, "width_o": width, "height_o": height}
        scale = side / max(width, height)
        across, down = max(1, round(width * scale)), max(1, round(height * scale))
        name = quote(hit.file_name)
        return {
            f"url_{size}": f"{origin}/thumb/{hit.folder}/{name}/{across}px-{name}",
            f"width_{size}": across,
            f"height_{size}": down,
        }


def upload_date(hit: Picture) -> int:
    """Seconds of the epoch, spread over 19 years by the name."""
    return FIRST_UPLOAD + hit.page_id % UPLOAD_SPAN_S


def license_id(hit: Picture) -> int:
    """0, All Rights Reserved, for what has no licence of Flickr's."""
    known = {url: number for number, (_, url) in LICENSES.items() if url}
    return known.get(hit.license_url, known.get(f"{hit.license_url}/", 0))


def _wanted(hit: Picture, params: Mapping[str, str]) -> bool:
    licenses = [text for text in params.get("license", "").split(",") if text]
    if licenses and str(license_id(hit)) not in licenses:
        return False
    first = _integer(params, "min_upload_date", 0)
    last = _integer(params, "max_upload_date", 2**62)
    return first <= upload_date(hit) <= last


def _integer(params: Mapping[str, str], name: str, default: int) -> int:
    text = params.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else default
