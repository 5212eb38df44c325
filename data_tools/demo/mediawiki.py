"""The search of the MediaWiki API as Commons answers it, over pictures in memory.

It has the difficulties that a client of the real API meets: pages are ordered by page id (`index`
is the rank), there is no `query` if nothing was found, descriptions are HTML, an answer has at most
`transform_limit` thumbnails (`iicontinue` asks for the rest of the batch, and only then comes
`batchcomplete`), and the result window is 10,000. https://www.mediawiki.org/wiki/API:Search,
https://www.mediawiki.org/wiki/API:Imageinfo
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np

from data_tools.text.fold import fold
from data_tools.text.html_text import html_to_text

RESULT_WINDOW = 10_000
MAX_LIMIT = 500
BITMAPS = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "gif": "image/gif",
    "webp": "image/webp",
}


@dataclass(frozen=True)
class Picture:
    """One file of the local server. `name` is unique; the title of its page is "File:" + name.

    `description` and `artist` are HTML. `served` decides how a GET of its URL is answered: "ok",
    "missing" (404) or "moved" (302 to the real place).
    """

    name: str
    content: bytes
    description: str = ""
    site: str = "site"
    license: str = ""
    license_url: str = ""
    artist: str = ""
    served: str = "ok"

    @property
    def file_name(self) -> str:
        return self.name.replace(" ", "_")

    @property
    def folder(self) -> str:
        digest = hashlib.md5(self.file_name.encode(), usedforsecurity=False).hexdigest()
        return f"{digest[0]}/{digest[:2]}"

    @property
    def path(self) -> str:
        return f"/{self.folder}/{quote(self.file_name)}"

    @property
    def media_type(self) -> str:
        return BITMAPS.get(self.name.rpartition(".")[2].lower(), "image/svg+xml")

    @property
    def page_id(self) -> int:
        return int(hashlib.md5(self.name.encode(), usedforsecurity=False).hexdigest()[:13], 16)

    def size(self) -> tuple[int, int]:
        """(width, height) in pixels; (0, 0) if the content is no picture."""
        if self.content[:8] == b"\x89PNG\r\n\x1a\n":
            width, height = struct.unpack(">II", self.content[16:24])
            return width, height
        image = cv2.imdecode(np.frombuffer(self.content, np.uint8), cv2.IMREAD_UNCHANGED)
        return (0, 0) if image is None else (image.shape[1], image.shape[0])


@dataclass
class SearchIndex:
    """Finds pictures whose title and description contain all words of a search (folded). Best title
    match first, then by name."""

    pictures: Sequence[Picture]
    postings: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    title_words: list[frozenset[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for number, picture in enumerate(self.pictures):
            title = words_of(picture.name.rpartition(".")[0])
            self.title_words.append(frozenset(title))
            for word in {*title, *words_of(html_to_text(picture.description))}:
                self.postings[word].add(number)

    def search(self, expression: str) -> list[Picture]:
        """All hits, best first. `filetype:bitmap` is the only operator; others are read as
        words."""
        operators = re.findall(r"\bfiletype:(\w+)", expression)
        words = set(words_of(re.sub(r"\bfiletype:\w+", " ", expression)))
        if not words:
            return []
        hits = set.intersection(*(self.postings.get(word, set()) for word in words))
        if "bitmap" in operators:
            hits = {hit for hit in hits if self.pictures[hit].media_type in BITMAPS.values()}

        def rank(hit: int) -> tuple[int, int, str]:
            title = self.title_words[hit]
            return -len(title & words), len(title), self.pictures[hit].name

        return [self.pictures[hit] for hit in sorted(hits, key=rank)]


def words_of(text: str) -> list[str]:
    """The folded words of a text."""
    return re.findall(r"\w+", fold(text).replace("_", " "))


class ApiError(Exception):
    """An error of the API. It is sent as MediaWiki does: HTTP 200 with {"error": {"code": ...,
    "info": ...}}."""

    def __init__(self, code: str, info: str) -> None:
        super().__init__(code, info)
        self.code, self.info = code, info


class MediaWiki:
    """The API. `hosts` maps a picture's site to host:port."""

    def __init__(self, pictures: Sequence[Picture], transform_limit: int = 50) -> None:
        self.hosts: dict[str, str] = {}
        self.api_host = ""
        self.transform_limit = transform_limit
        self._search = lru_cache(maxsize=256)(SearchIndex(pictures).search)

    def answer(self, params: Mapping[str, str]) -> dict[str, Any]:
        """The JSON answer to one request. Raises ApiError."""
        if params.get("action") != "query" or params.get("generator") != "search":
            raise ApiError("badvalue", 'Unrecognized value for parameter "action" or "generator".')
        if not params.get("gsrsearch"):
            raise ApiError("missingparam", 'The "gsrsearch" parameter must be set.')
        if params.get("gsrnamespace") != "6":
            return {"batchcomplete": True}
        limit = min(_integer(params, "gsrlimit", 10), MAX_LIMIT)
        offset = _integer(params, "gsroffset", 0)
        hits = self._search(params["gsrsearch"])[:RESULT_WINDOW]
        page = hits[offset : offset + limit]
        more = (
            {"gsroffset": offset + limit, "continue": "gsroffset||"}
            if len(hits) > offset + limit
            else {}
        )
        described, rest = self._described(page, params)
        answer: dict[str, Any] = {}
        if rest is None:
            answer["batchcomplete"] = True
        if rest or more:
            answer["continue"] = rest or more
        if page:
            entries = [
                self._page(hit, offset + rank + 1, params, described)
                for rank, hit in enumerate(page)
            ]
            answer["query"] = {"pages": sorted(entries, key=lambda entry: entry["pageid"])}
        return _as_version_1(answer) if params.get("formatversion", "1") == "1" else answer

    def _described(
        self, page: list[Picture], params: Mapping[str, str]
    ) -> tuple[set[str], dict | None]:
        """(names whose imageinfo is in this answer, parameters that ask for the others or None)."""
        names = sorted(picture.name for picture in page)
        start = params.get("iicontinue", "").rpartition("|")[0]
        names = [name for name in names if name >= start]
        if "iiurlwidth" not in params or len(names) <= self.transform_limit:
            return set(names), None
        following = names[self.transform_limit]
        rest = {"iicontinue": f"{following}|20200101000000", "continue": "||"}
        if "gsroffset" in params:  # the same batch again, not the next one
            rest["gsroffset"] = params["gsroffset"]
        return set(names[: self.transform_limit]), rest

    def _page(
        self, hit: Picture, index: int, params: Mapping[str, str], described: set[str]
    ) -> dict[str, Any]:
        page: dict[str, Any] = {
            "pageid": hit.page_id,
            "ns": 6,
            "title": f"File:{hit.name}",
            "index": index,
        }
        page["imagerepository"] = "local"
        if hit.name in described:
            page["imageinfo"] = [self._imageinfo(hit, params)]
        return page

    def _imageinfo(self, hit: Picture, params: Mapping[str, str]) -> dict[str, Any]:
        width, height = hit.size()
        origin = f"http://{self.hosts[hit.site]}"
        info: dict[str, Any] = {
            "timestamp": "2020-01-01T00:00:00Z",
            "user": f"{hit.site} uploader",
            "size": len(hit.content),
            "width": width,
            "height": height,
            "url": origin + hit.path,
            "descriptionurl": f"http://{self.api_host}/wiki/File:{quote(hit.file_name)}",
            "descriptionshorturl": f"http://{self.api_host}/w/index.php?curid={hit.page_id}",
            "sha1": hashlib.sha1(hit.content, usedforsecurity=False).hexdigest(),
            "mime": hit.media_type,
            "extmetadata": _extmetadata(hit, params.get("iiextmetadatafilter", "")),
        }
        asked = _integer(params, "iiurlwidth", -1)
        # bitmaps are never enlarged: the thumbnail of a small file is the file itself
        if 0 < asked < width:
            name = quote(hit.file_name)
            info["thumburl"] = f"{origin}/thumb/{hit.folder}/{name}/{asked}px-{name}"
            info["thumbwidth"], info["thumbheight"] = asked, max(1, round(height * asked / width))
        elif asked > 0:
            info["thumburl"], info["thumbwidth"], info["thumbheight"] = info["url"], width, height
        return info


def _extmetadata(hit: Picture, wanted: str) -> dict[str, dict[str, str]]:
    values = {
        "ImageDescription": hit.description,
        "LicenseShortName": hit.license,
        "LicenseUrl": hit.license_url,
        "UsageTerms": hit.license,
        "Artist": hit.artist,
        "AttributionRequired": "true" if hit.license else "",
    }
    names = wanted.split("|") if wanted else list(values)
    return {
        name: {"value": values[name], "source": "commons-desc-page"}
        for name in names
        if values.get(name)
    }


def _integer(params: Mapping[str, str], name: str, default: int) -> int:
    try:
        return int(params.get(name, default))
    except ValueError:
        raise ApiError(
            "badinteger", f'Invalid value "{params[name]}" for integer parameter "{name}".'
        ) from None


def _as_version_1(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer as formatversion=1: flags are empty strings, pages are a dict by page id."""
    if "batchcomplete" in answer:
        answer["batchcomplete"] = ""
    if "query" in answer:
        answer["query"]["pages"] = {str(page["pageid"]): page for page in answer["query"]["pages"]}
    return answer


def thumbnail(content: bytes, width: int) -> bytes:
    """A PNG of the picture, scaled down to `width` pixels. Raises ValueError if it is no
    picture."""
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ValueError("not a picture")
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".png", small)[1].tobytes()
