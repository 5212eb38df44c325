"""/.well-known/tdmrep.json: the file by which a site reserves text and data mining for parts of
itself (TDM Reservation Protocol of the W3C's community group,
https://www.w3.org/community/reports/tdmrep/CG-FINAL-tdmrep-20240510).

    [{"location": "/photos/*.jpg", "tdm-reservation": 1, "tdm-policy": "https://..."}, ...]

The first rule whose location matches an address counts; locations match as the paths of a
robots.txt do. In the protocol a response header overrules the file. Here an address that the file
reserves is not fetched at all, so a header of 0 can't free it; an address that the file leaves free
can still be reserved by its header (opt_out.py).
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from urllib.parse import quote

from yarl import URL

from data_tools.crawl.answer import looks_like_text
from data_tools.crawl.fetch import Fetcher
from data_tools.crawl.fetch_error import Budget, FetchError
from data_tools.crawl.fetch_request import FetchRequest
from data_tools.crawl.origins import OncePerOrigin

PATH = "/.well-known/tdmrep.json"
MAX_BYTES = 512_000
# Each address is compared with all rules, on the event loop that serves all other URLs. Rules
# beyond this number of characters of locations are left out (1,000 long rules; 6 ms of "*a*a*a" at
# most).
MAX_LOCATION_CHARS = 65_536
# The file may take this share of a URL's deadline, so that a site that answers everything else is
# not lost because of it.
SHARE_OF_TIME = 0.25
_ESCAPED = re.compile(r"%([0-9A-Fa-f]{2})")
_ASCII = "".join(map(chr, range(33, 127)))
_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]")


@dataclass(frozen=True)
class Rule:
    """One entry of the file."""

    pieces: tuple[str, ...]
    """The location, split at each "*"."""
    to_the_end: bool
    """The location ends with "$"."""
    reserved: bool
    policy: str

    def matches(self, path: str) -> bool:
        """Whether the rule is about `path`: path and query as `comparable` writes them. Takes time
        linear in its length."""
        first, *others = self.pieces
        if not path.startswith(first):
            return False
        at, last = len(first), None
        if self.to_the_end:
            if not others:
                return at == len(path)
            *others, last = others
        for piece in others:
            at = path.find(piece, at)
            if at < 0:
                return False
            at += len(piece)
        return last is None or (path.endswith(last) and len(path) - len(last) >= at)


class TdmGate:
    """Asks each origin for its file once a day. If there is none, it can't be fetched or it is not
    such a file, nothing is reserved; one that couldn't be fetched is asked for again ten minutes
    later."""

    def __init__(self, fetcher: Fetcher, timeout_s: float) -> None:
        self._fetcher, self._timeout_s = fetcher, timeout_s
        self._rules = OncePerOrigin(self._load)

    async def check(self, url: URL) -> None:
        """Raise FetchError "rejected:tdm_reservation" if the site's file reserves this address."""
        try:
            rules = await self._rules.get(url)
        except FetchError:
            return
        path = comparable(url.raw_path_qs) if rules else ""
        rule = next((rule for rule in rules if rule.matches(path)), None)
        if rule is not None and rule.reserved:
            detail = f"{PATH} of {url.host} reserves {url.raw_path} {rule.policy}"
            raise FetchError("rejected:tdm_reservation", detail[:200])

    async def _load(self, url: URL) -> list[Rule]:
        budget = Budget(self._timeout_s * SHARE_OF_TIME)
        try:
            request = FetchRequest(MAX_BYTES, recognises=looks_like_text)
            response = await self._fetcher.get(f"{url.origin()}{PATH}", budget, request)
        except FetchError as error:
            if 400 <= (error.http_status or 0) < 500 and error.http_status != 429:
                return []
            raise
        return await asyncio.to_thread(parse, response.content)


def parse(content: bytes) -> list[Rule]:
    """The rules of a file in their order; entries that are no rules are left out."""
    try:
        # numbers stay text, because to make an int of half a megabyte of digits takes seconds
        document = json.loads(content.decode("utf-8-sig"), parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return []
    # some sites forget the brackets around a single rule
    rows = document if isinstance(document, list) else [document]
    rules, room = [], MAX_LOCATION_CHARS
    for row in rows:
        location = row.get("location") if isinstance(row, dict) else None
        if isinstance(location, str) and location.strip():
            room -= len(location)
            if room < 0:
                break
            reserved = row.get("tdm-reservation")
            rules.append(_rule(location.strip(), reserved in ("1", True), row.get("tdm-policy")))
    return rules


def _rule(location: str, reserved: bool, policy: object) -> Rule:
    if location.lower().startswith(("http://", "https://")):
        location = "/" + location.split("/", 3)[3] if location.count("/") > 2 else "/"
    elif location[0] not in "/*":
        location = "/" + location
    to_the_end = location.endswith("$")
    pieces = comparable(location.removesuffix("$")).split("*")
    return Rule(tuple(pieces), to_the_end, reserved, policy if isinstance(policy, str) else "")


def comparable(path: str) -> str:
    """One spelling of a path: escapes of characters that need none are undone, other escapes are
    upper-case, and characters outside ASCII are escaped."""
    path = quote(path, safe=_ASCII, errors="replace")

    def written(escape: re.Match[str]) -> str:
        char = chr(int(escape[1], 16))
        return char if _UNRESERVED.fullmatch(char) else escape[0].upper()

    return _ESCAPED.sub(written, path)
