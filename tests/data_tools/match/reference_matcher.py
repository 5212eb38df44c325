"""What a match is, one caption at a time and as plain as can be: the fast matcher must agree.

The automaton here is pyahocorasick's, over the characters of the text; bounds are looked at after
the fact.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence

import ahocorasick

# Thai, Lao, Myanmar, Khmer, kana, Han (with extensions and compatibility forms)
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


class ReferenceMatcher:
    """`queries` are in normal form."""

    def __init__(self, queries: Sequence[str], case_sensitive: bool = False) -> None:
        self._case_sensitive = case_sensitive
        self._automaton = ahocorasick.Automaton()
        for number, query in enumerate(queries):
            self._automaton.add_word(query, (number, len(query)))
        self._automaton.make_automaton()

    def match(self, caption: str) -> list[int]:
        """Sorted distinct ids of the queries that occur in `caption`."""
        text = normal_form(caption, self._case_sensitive)
        ends = ((last + 1, *found) for last, found in self._automaton.iter(text))
        return sorted({number for end, number, size in ends if bounded(text, end - size, end)})


TYPED = {"\u2019": "'", "\u2018": "'", "\u02bc": "'", "\u00b4": "'", "`": "'"}
TYPED |= {"\u201c": '"', "\u2033": '"', "\u2011": "-", "\u2013": "-", "\u2212": "-", "\ufe0f": ""}


def normal_form(text: str, case_sensitive: bool) -> str:
    """Entities are decoded here one pass after the other, by the standard library."""
    before = None
    while text != before:
        before = text
        text = re.sub("&(#x?[0-9a-f]+|[a-zA-Z]+);", lambda found: html.unescape(found[0]), text)
        text = "".join(TYPED.get(char, char) for char in text if unicodedata.category(char) != "Cf")
        text = unicodedata.normalize("NFKC", text)
    if not case_sensitive:
        text = unicodedata.normalize("NFKC", text.casefold())
    return " ".join(text.split())


def bounded(text: str, start: int, end: int) -> bool:
    before = start == 0 or not joined(text[start - 1], text[start])
    return before and (end == len(text) or not joined(text[end - 1], text[end]))


def joined(left: str, right: str) -> bool:
    """Whether the two characters belong to one word."""
    if UNSPACED.match(left) or UNSPACED.match(right):
        return unicodedata.category(right)[0] == "M"  # a vowel sign belongs to its letter
    return unicodedata.category(left)[0] in "LMN" and unicodedata.category(right)[0] in "LMN"
