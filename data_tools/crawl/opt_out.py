"""Response headers by which a site forbids the use of an image: X-Robots-Tag, TDM-Reservation. The
files that do the same are read in robots.py and tdm_file.py."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Iterator
from datetime import datetime, timezone

from data_tools.crawl.fetch_error import FetchError
from data_tools.crawl.fetch_request import Headers

# img2dataset's default list; `noml` (Noml's proposal for machine learning); and `none`, which means
# noindex, nofollow.
FORBIDDING_TAGS = {"noai", "noimageai", "noml", "noindex", "noimageindex", "none"}
# The directives that take a value of their own after a colon; any other "word:" names a crawler.
_VALUED_TAGS = {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"}
# A crawler's name is a product token; "03 dec 2025 13" in front of a colon is the rest of a date.
_ADDRESSEE = re.compile(r"(?=.*[a-z*])[\w.*-]+")


def check_robots_tags(headers: Headers, product: str) -> None:
    """Raise FetchError "rejected:x_robots_tag" if a value of the header forbids the image to us or
    to everybody.

    A value is a list of directives; "name:" before one starts those of the crawler of that name
    ("googlebot: noindex, nofollow"), except where the name is that of a directive
    ("unavailable_after: 1 Jan 2030"), which forbids when its date has passed.
    """
    for value in headers.getall("X-Robots-Tag", []):
        for addressee, directive, rest in _directives(value.lower()):
            if addressee not in ("", "*", product.lower()):
                continue
            if directive in FORBIDDING_TAGS or (
                directive == "unavailable_after" and _has_passed(rest)
            ):
                raise FetchError("rejected:x_robots_tag", f"X-Robots-Tag: {value}"[:200], 200)


def check_tdm_reservation(headers: Headers) -> None:
    """Raise FetchError "rejected:tdm_reservation" for tdm-reservation: 1 (the TDM Reservation
    Protocol of the W3C's community group,
    https://www.w3.org/community/reports/tdmrep/CG-FINAL-tdmrep-20240510; its 0 and its absence mean
    that nothing is reserved)."""
    if any(value.strip() == "1" for value in headers.getall("TDM-Reservation", [])):
        policy = headers.get("TDM-Policy", "")
        raise FetchError("rejected:tdm_reservation", f"tdm-reservation: 1 {policy}"[:200], 200)


def _directives(value: str) -> Iterator[tuple[str, str, str]]:
    """Yield (crawler or "", directive, its value or "") of each directive in a header value."""
    addressee = ""
    items = value.split(",")
    for number, item in enumerate(items):
        name, colon, rest = (part.strip() for part in item.partition(":"))
        if colon and name not in _VALUED_TAGS and _ADDRESSEE.fullmatch(name):
            addressee, name, rest = name, rest, ""
            if ":" in name:  # "otherbot: unavailable_after: 1 Jan 2030"
                name, _, rest = (part.strip() for part in name.partition(":"))
        if name == "unavailable_after" and number + 1 < len(items):
            rest += "," + items[number + 1]  # "Wed, 03 Dec 2025 13:09:53 GMT"
        yield addressee, name, rest


def _has_passed(date: str) -> bool:
    """Whether a date (RFC 822, RFC 850 or ISO 8601) is in the past; False if it is unreadable."""
    for text in (date, date.partition(",")[0]):
        for parse in (email.utils.parsedate_to_datetime, _iso):
            try:
                when = parse(text.strip())
            except (TypeError, ValueError, IndexError, OverflowError):
                continue
            if when.tzinfo is None:
                when = when.replace(tzinfo=timezone.utc)
            return when.timestamp() < time.time()
    return False


def _iso(text: str) -> datetime:
    return datetime.fromisoformat(text.upper().replace("Z", "+00:00"))
