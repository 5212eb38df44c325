"""The image search of Openverse, over pictures in memory.

It has the difficulties that a client of the real API meets: at most 240 works per query, 20 results
per page without a token (more: 401), 500 with one (more: 400), 20 pages, deprecated parameters as
400, tokens that expire, null titles, tags as the only other text, throttles stated in headers, a
query cut at 200 characters.
https://api.openverse.org/v1/, and api/api/serializers/media_serializers.py of WordPress/openverse.
"""

from __future__ import annotations

import math
import re
import secrets
import uuid
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any
from urllib.parse import quote

from data_tools.demo.mediawiki import Picture, SearchIndex, words_of
from data_tools.text.html_text import html_to_text
from tests.data_tools.search.doubles.replies import ApiLog, PageFaults, Reply, Throttle, page_of

MAX_RESULTS = 240
MAX_PAGE = 20
PAGE_SIZE_ANONYMOUS, PAGE_SIZE_AUTHORIZED = 20, 500
MAX_QUERY_CHARS = 200
TOKEN_LASTS_S = 36_000
DEPRECATED = {
    "li": "license",
    "lt": "license_type",
    "pagesize": "page_size",
    "provider": "source",
}
LICENSE_TYPES = {
    "commercial": lambda name: "nc" not in name.split("-"),
    "modification": lambda name: "nd" not in name.split("-"),
    "all": lambda name: True,
    "all-cc": lambda name: name != "pdm",
}


class InputError(Exception):
    """A wrong parameter: sent as HTTP 400 with its name."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(name, message)
        self.name, self.message = name, message


class Openverse:
    """`images(params, authorization)` and `token(form)` are the replies to one request each.

    `throttles` are those of anonymous callers by scope ("anon_burst": "5/hour"); none by default.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        faults: PageFaults | None = None,
        throttles: Mapping[str, str] | None = None,
    ) -> None:
        self.hosts: dict[str, str] = {}
        self.api_host = ""
        self.log = ApiLog()
        self.clients = {"demo-client-id": "demo-client-secret"}
        self.tokens: set[str] = set()
        """Valid tokens; a test removes them to let them expire."""
        self.token_lasts_s = TOKEN_LASTS_S
        self._faults = faults or PageFaults()
        self._throttles = [Throttle(scope, rate) for scope, rate in (throttles or {}).items()]
        self._pictures = pictures
        self._num_requests = 0

    @cached_property
    def _index(self) -> SearchIndex:
        return SearchIndex(self._pictures)

    def token(self, form: Mapping[str, str]) -> Reply:
        """POST auth_tokens/token/."""
        if form.get("grant_type") != "client_credentials":
            return self._refuse("grant", Reply(400, {"error": "unsupported_grant_type"}))
        if self.clients.get(form.get("client_id", "")) != form.get("client_secret"):
            return self._refuse("client", Reply(401, {"error": "invalid_client"}))
        token = secrets.token_urlsafe(24)
        self.tokens.add(token)
        body = {
            "access_token": token,
            "expires_in": self.token_lasts_s,
            "token_type": "Bearer",
            "scope": "read write groups",
        }
        return Reply(200, body)

    def images(self, params: Mapping[str, str], authorization: str) -> Reply:
        """GET images/."""
        self._num_requests += 1
        if self._faults.turn(self._num_requests, self._faults.throttle_every):
            return self._refuse("throttle", self._faults.throttled())
        if self._faults.turn(self._num_requests, self._faults.unavailable_every):
            return self._refuse("unavailable", Reply(503, "<html>upstream</html>"))
        authorized = authorization.startswith("Bearer ")
        if authorized and authorization.removeprefix("Bearer ") not in self.tokens:
            return self._refuse("token", Reply(401, {"detail": "Invalid token."}))
        headers: dict[str, str] = {}
        for throttle in () if authorized else self._throttles:
            refusal_s = throttle.refusal_s()
            headers |= throttle.headers()
            if refusal_s is not None:
                wait_s = math.ceil(refusal_s)
                detail = f"Request was throttled. Expected available in {wait_s} seconds."
                reply = Reply(429, {"detail": detail}, headers | {"Retry-After": str(wait_s)})
                return self._refuse("throttle", reply)
        try:
            page_size = _page_size(params, authorized)
            if page_size > PAGE_SIZE_ANONYMOUS and not authorized:
                reason = f"page_size may not exceed {PAGE_SIZE_ANONYMOUS} for anonymous requests."
                return self._refuse("page_size", Reply(401, {"detail": reason}, headers))
            body = self._found(params, page_size)
        except InputError as error:
            wrong = {error.name: [error.message]}
            body = {"error": "InputError", "detail": wrong, "fields": [error.name]}
            return self._refuse(error.name, Reply(400, body, headers))
        self.log.requests.append(dict(params))
        return Reply(200, body, headers)

    def _refuse(self, reason: str, reply: Reply) -> Reply:
        self.log.refused.append(reason)
        return reply

    def _found(self, params: Mapping[str, str], page_size: int) -> dict[str, Any]:
        _check(params)
        page = _integer(params, "page", 1, MAX_PAGE)
        hits = self._index.search(params.get("q", "")[:MAX_QUERY_CHARS])
        if params.get("filter_dead", "true") != "false":
            hits = [hit for hit in hits if hit.served != "missing"]
        kinds = params.get("license_type", "all").split(",")
        hits = [hit for hit in hits if all(LICENSE_TYPES[k](_license(hit)[0]) for k in kinds)]
        hits = hits[:MAX_RESULTS]
        shown, any_own = page_of(hits, page, page_size, self._faults.repeated)
        count = max(0, len(hits) - (page - 1) * self._faults.shrinks_by)
        return {
            "result_count": str(count) if self._faults.text_totals else count,
            "page_count": min(-(-len(hits) // page_size), MAX_PAGE),
            "page_size": page_size,
            "page": page,
            "results": [self._result(hit) for hit in shown] if any_own else [],
        }

    def _result(self, hit: Picture) -> dict[str, Any]:
        width, height = hit.size()
        name, version = _license(hit)
        identity = str(uuid.UUID(int=hit.page_id))
        detail = f"http://{self.api_host}/v1/images/{identity}/"
        no_title = self._faults.turn(hit.page_id, self._faults.null_title_every)
        tags: list[dict[str, Any]] = [
            {"name": word, "accuracy": None, "unstable__provider": "local"}
            for word in dict.fromkeys(words_of(html_to_text(hit.description)))
        ]
        tags.append({"name": "machine guess", "accuracy": 0.93, "unstable__provider": "clarifai"})
        return {
            "id": identity,
            "title": None if no_title else hit.name.rpartition(".")[0],
            "indexed_on": "2020-01-01T00:00:00.000000Z",
            "foreign_landing_url": f"http://{self.api_host}/wiki/File:{quote(hit.file_name)}",
            "url": f"http://{self.hosts[hit.site]}{hit.path}",
            "creator": html_to_text(hit.artist) or None,
            "creator_url": None,
            "license": name,
            "license_version": version,
            "license_url": hit.license_url or None,
            "provider": "local",
            "source": "local",
            "category": None,
            "filesize": len(hit.content),
            "filetype": hit.name.rpartition(".")[2].lower(),
            "tags": tags,
            "attribution": f'"{hit.name}" is licensed under {hit.license}.',
            "fields_matched": [],
            "mature": False,
            "height": height or None,
            "width": width or None,
            "thumbnail": f"{detail}thumb/",
            "detail_url": detail,
            "related_url": f"{detail}related/",
            "unstable__sensitivity": [],
        }


def _page_size(params: Mapping[str, str], authorized: bool) -> int:
    most = PAGE_SIZE_AUTHORIZED if authorized else 2**31
    return _integer(params, "page_size", PAGE_SIZE_ANONYMOUS, most)


def _integer(params: Mapping[str, str], name: str, default: int, most: int) -> int:
    text = params.get(name, str(default))
    if not re.fullmatch(r"-?\d+", text):
        raise InputError(name, "A valid integer is required.")
    if int(text) < 1:
        raise InputError(name, "Ensure this value is greater than or equal to 1.")
    if int(text) > most:
        raise InputError(name, f"Ensure this value is less than or equal to {most}.")
    return int(text)


def _check(params: Mapping[str, str]) -> None:
    for name, successor in DEPRECATED.items():
        if name in params:
            message = f"Parameter '{name}' is deprecated in this release of the API."
            raise InputError(name, f"{message} Use '{successor}' instead.")
    if "source" in params and "excluded_source" in params:
        raise InputError("excluded_source", "Cannot set both 'source' and 'excluded_source'.")
    for kind in params.get("license_type", "all").split(","):
        if kind not in LICENSE_TYPES:
            raise InputError("license_type", f"License type '{kind}' does not exist.")


def _license(hit: Picture) -> tuple[str, str]:
    """("by-sa", "4.0") from a Creative Commons address; ("by", "2.0") without one."""
    found = re.search(r"/(licenses|publicdomain)/([a-z-]+)/(\d\.\d)", hit.license_url)
    if not found:
        return "by", "2.0"
    return {"zero": "cc0", "mark": "pdm"}.get(found[2], found[2]), found[3]
