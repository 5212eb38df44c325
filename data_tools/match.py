"""Which queries occur in a caption: sub-string match, as CLIP and MetaCLIP choose their pairs.

Both sides are folded (data_tools/queries/fold.py). A match must be bounded: "cat" is in "a cat!",
not in "category". Scripts that write no spaces between words (Chinese, Japanese, Thai, ...) have
no such bounds, so there every occurrence counts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from ahocorasick_rs import AhoCorasick, Implementation

from data_tools.queries.fold import fold

# Thai, Lao, Myanmar, Khmer, kana, Han (with extensions and compatibility forms)
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


class QueryMatcher:
    """An Aho-Corasick automaton over folded queries; `query_id` is the position in the list."""

    def __init__(self, folded_queries: Sequence[str]) -> None:
        # ContiguousNFA: 134k captions/s a core at 500k patterns, against 48k/s noncontiguous
        self._automaton = AhoCorasick(
            list(folded_queries), implementation=Implementation.ContiguousNFA
        )

    def match(self, caption: str) -> list[int]:
        """Sorted distinct ids of the queries that occur in `caption`."""
        text = fold(caption)
        # overlapping: else a match hides those inside and across it ("ice hockey" hides "hockey")
        found = self._automaton.find_matches_as_indexes(text, overlapping=True)
        return sorted({query for query, start, end in found if _bounded(text, start, end)})


def _bounded(text: str, start: int, end: int) -> bool:
    before = start == 0 or not _joined(text[start - 1], text[start])
    return before and (end == len(text) or not _joined(text[end - 1], text[end]))


def _joined(left: str, right: str) -> bool:
    """Whether the two characters belong to one word."""
    if UNSPACED.match(left) or UNSPACED.match(right):
        return unicodedata.category(right)[0] == "M"  # a vowel sign belongs to its letter
    return _in_word(left) and _in_word(right)


def _in_word(char: str) -> bool:
    return unicodedata.category(char)[0] in "LMN"
