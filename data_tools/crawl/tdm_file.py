"""/.well-known/tdmrep.json: the file by which a site reserves text and data mining for parts of
itself (TDM Reservation Protocol of the W3C's community group,
https://www.w3.org/community/reports/tdmrep/CG-FINAL-tdmrep-20240510).

    [{"location": "/photos/*.jpg", "tdm-reservation": 1, "tdm-policy": "https://..."}, ...]

The first rule whose location matches an address counts; locations match as the paths of a
robots.txt do. A response header has the last word by the protocol; here the file's reservation is
not asked about again, so that a header of 0 lifts nothing. The other way round, the header of an
address that the file leaves free is still looked at (opt_out.py).
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from urllib.parse import quote

from yarl import URL

from data_tools.crawl.fetch import Fetcher, Wish
from data_tools.crawl.fetch_error import Budget, FetchError
from data_tools.crawl.origins import OncePerOrigin

PATH = "/.well-known/tdmrep.json"
MAX_BYTES = 512_000
# Each address is compared with all rules, on the loop that serves everybody else: what comes after
# so many characters of locations is left out (1,000 long rules; 6 ms of "*a*a*a" at most).
MAX_LOCATION_CHARS = 65_536
# Of a URL's deadline, at most: a site that answers all but this is not lost by it.
SHARE_OF_TIME = 0.25
_ESCAPED = re.compile(r"%([0-9A-Fa-f]{2})")
_ASCII = "".join(map(chr, range(33, 127)))
_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]")


@dataclass(frozen=True)
class Rule:
    pieces: tuple[str, ...]
    """What stands between the "*" of the location."""
    to_the_end: bool
    """The location ends with "$"."""
    reserved: bool
    policy: str

    def matches(self, path: str) -> bool:
        """`path`: path and query as `comparable` writes them. Linear in its length."""
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
    """Asks each origin for its file once a day. One that is not there, does not come or is no such
    file reserves nothing; ten minutes later one that did not come is asked for again."""

    def __init__(self, fetcher: Fetcher, timeout_s: float) -> None:
        self._fetcher, self._timeout_s = fetcher, timeout_s
        self._rules = OncePerOrigin(self._load)

    async def check(self, url: URL) -> None:
        """FetchError "rejected:tdm_reservation" where the site's file reserves this address."""
        try:
            rules = await self._rules.of(url)
        except FetchError:
            return
        path = comparable(url.raw_path_qs) if rules else ""
        found = next((rule for rule in rules if rule.matches(path)), None)
        if found is not None and found.reserved:
            told = f"{PATH} of {url.host} reserves {url.raw_path} {found.policy}"
            raise FetchError("rejected:tdm_reservation", told[:200])

    async def _load(self, url: URL) -> list[Rule]:
        budget = Budget(self._timeout_s * SHARE_OF_TIME)
        try:
            response = await self._fetcher.get(f"{url.origin()}{PATH}", budget, Wish(MAX_BYTES))
        except FetchError as error:
            if 400 <= (error.http_status or 0) < 500 and error.http_status != 429:
                return []
            raise
        return await asyncio.to_thread(parse, response.content)


def parse(content: bytes) -> list[Rule]:
    """The rules of a file, in their order; without those that are none."""
    try:
        # numbers stay text: one of half a megabyte of digits takes seconds to become an int
        found = json.loads(content.decode("utf-8-sig"), parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return []
    rows = found if isinstance(found, list) else [found]  # brackets are forgotten
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
    """Escapes of characters that need none are undone, the others are upper-case; what is not ASCII
    is escaped."""
    path = quote(path, safe=_ASCII, errors="replace")

    def written(escape: re.Match[str]) -> str:
        char = chr(int(escape[1], 16))
        return char if _UNRESERVED.fullmatch(char) else escape[0].upper()

    return _ESCAPED.sub(written, path)
