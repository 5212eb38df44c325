"""Converts fields of the servers' JSON, which can hold anything, to those of the candidate table
(text, pixels, addresses, licences), and queries to what the servers accept."""

from __future__ import annotations

import re
from typing import Any

from data_tools.ground.entities import unescaped
from data_tools.text.html_text import html_to_text
from data_tools.text.typography import typed

# Characters that a search server reads as an operator, a phrase, a wildcard or a regex:
# CirrusSearch (https://www.mediawiki.org/wiki/Help:CirrusSearch), and Elasticsearch's
# simple_query_string, which is Openverse's.
OPERATORS = r"""["*?~!:|\\^=(){}\[\]<>]"""


def search_words(query: str, max_chars: int = 300, max_words: int = 50) -> str:
    """The query as plain words, without what servers read as operators: `-x`, `x:`, `"x"`, `~`,
    `*`, `OR`. It is cut between words to the length that the server accepts; empty if nothing is
    left to search for."""
    seen = typed(unescaped(query))  # a soft hyphen or a curly apostrophe finds less
    words = (word.lstrip("-+") for word in re.sub(OPERATORS, " ", seen).split())
    plain = [word.lower() if word in ("AND", "OR", "NOT") else word for word in words if word]
    text = " ".join(plain[:max_words])
    if len(text) > max_chars:
        text = text[: max_chars + 1].rpartition(" ")[0] or text[:max_chars]
    return text if re.search(r"\w", text) or not text.isascii() else ""


def plain(value: Any) -> str:
    """The text with runs of white space as one space; empty if `value` is no text."""
    return encodable(" ".join(value.split())) if isinstance(value, str) else ""


def visible(value: Any) -> str:
    """The visible text of an HTML fragment; empty if `value` is no text."""
    return encodable(html_to_text(value)) if isinstance(value, str) else ""


def encodable(text: str) -> str:
    """`text` with "?" in place of half surrogate pairs ("\\ud83d"): JSON can hold them, but no
    UTF-8 table can."""
    return text.encode("utf-8", "replace").decode()


def pixels(value: Any) -> int | None:
    """A width or height, given as a number or in digits; None if `value` is none."""
    count = number(value)
    return count if count is not None and 0 < count < 2**31 else None


def number(value: Any) -> int | None:
    """A count, given as a number or in digits; None if `value` is none, or 10^15 or more."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,15}", value):
        return int(value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and 0 <= value < 10**15 else None


def web_address(value: Any) -> str:
    """An http(s) address; `//host/path` is read as https. Empty if `value` is no such address."""
    text = plain(value)
    text = f"https:{text}" if text.startswith("//") else text
    return text if text.lower().startswith(("http://", "https://")) else ""


def creative_commons_name(license_url: str) -> str:
    """The name of a licence by its address: "https://creativecommons.org/licenses/by-sa/4.0/" ->
    "CC BY-SA 4.0"; empty for other licences."""
    match = re.search(
        r"creativecommons\.org/(licenses|publicdomain)/([a-z-]+)/(\d\.\d)", license_url
    )
    if not match:
        return ""
    if match[1] == "licenses":
        return f"CC {match[2].upper()} {match[3]}"
    return {"zero": f"CC0 {match[3]}", "mark": f"Public Domain Mark {match[3]}"}.get(match[2], "")
