"""Fields of strangers' JSON as the candidate table needs them: text, pixels, addresses, licences;
and queries as the servers take them."""

from __future__ import annotations

import re
from typing import Any

from data_tools.text.html_text import html_to_text

# Characters that a search server reads as an operator, a phrase, a wildcard or a regex:
# CirrusSearch (https://www.mediawiki.org/wiki/Help:CirrusSearch), and Elasticsearch's
# simple_query_string, which is Openverse's.
OPERATORS = r"""["*?~!:|\\^=(){}\[\]<>]"""


def search_words(query: str, max_chars: int = 300, max_words: int = 50) -> str:
    """The query as plain words: servers read `-x`, `x:`, `"x"`, `~`, `*`, `OR` as operators. Cut
    between words to what a server takes; empty when nothing is left to search for."""
    words = (word.lstrip("-+") for word in re.sub(OPERATORS, " ", query).split())
    plain = [word.lower() if word in ("AND", "OR", "NOT") else word for word in words if word]
    text = " ".join(plain[:max_words])
    if len(text) > max_chars:
        text = text[: max_chars + 1].rpartition(" ")[0] or text[:max_chars]
    return text if re.search(r"\w", text) or not text.isascii() else ""


def plain(value: Any) -> str:
    """Text as it is, white space collapsed; empty for what is no text."""
    return encodable(" ".join(value.split())) if isinstance(value, str) else ""


def visible(value: Any) -> str:
    """The visible text of an HTML fragment; empty for what is no text."""
    return encodable(html_to_text(value)) if isinstance(value, str) else ""


def encodable(text: str) -> str:
    """JSON can hold half a surrogate pair ("\\ud83d"), which no UTF-8 table can."""
    return text.encode("utf-8", "replace").decode()


def pixels(value: Any) -> int | None:
    """A width or height, given as a number or in digits; None for what is none."""
    count = number(value)
    return count if count is not None and 0 < count < 2**31 else None


def number(value: Any) -> int | None:
    """A count, given as a number or in digits; None for what is none, and from 10^15 on."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,15}", value):
        return int(value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and 0 <= value < 10**15 else None


def web_address(value: Any) -> str:
    """An http(s) address, `//host/path` taken as https; empty for what is none."""
    text = plain(value)
    text = f"https:{text}" if text.startswith("//") else text
    return text if text.lower().startswith(("http://", "https://")) else ""


def creative_commons_name(license_url: str) -> str:
    """ "https://creativecommons.org/licenses/by-sa/4.0/" -> "CC BY-SA 4.0"; empty for others."""
    found = re.search(
        r"creativecommons\.org/(licenses|publicdomain)/([a-z-]+)/(\d\.\d)", license_url
    )
    if not found:
        return ""
    if found[1] == "licenses":
        return f"CC {found[2].upper()} {found[3]}"
    return {"zero": f"CC0 {found[3]}", "mark": f"Public Domain Mark {found[3]}"}.get(found[2], "")
