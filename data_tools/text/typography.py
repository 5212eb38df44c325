"""Typographic characters as those of a keyboard, and what nobody sees left out.

A query list is typed, captions are typeset: "mother's day" is there as "Mother\u2019s Day",
"t-shirt" with a hyphen that does not break, "hockey" with a soft hyphen inside.
"""

from __future__ import annotations

import re

APOSTROPHES = (
    "`\u00b4\u02b9\u02bb\u02bc\u02bd\u02ca\u02cb\u0374\u055a\u05f3\u07f4\u07f5\u1fef\u1ffd\u2018"
    "\u2019\u201a\u201b\u2032\u2035\u2039\u203a\u275b\u275c\u275f\ua78b\ua78c\uff07\uff40"
)
QUOTATION_MARKS = (
    "\u00ab\u00bb\u02ba\u02ee\u05f4\u201c\u201d\u201e\u201f\u2033\u2036\u275d\u275e\u2760\u2e42"
    "\u301d\u301e\u301f\uff02\U0001f676\U0001f677\U0001f678"
)
HYPHENS = (
    "\u02d7\u058a\u05be\u1806\u2010\u2011\u2012\u2013\u2014\u2015\u2043\u207b\u208b\u2212\u2e3a\u2e3b\ufe31"
    "\ufe32\ufe58\ufe63\uff0d\U00010ead"
)
# Characters that NFKC would take apart into some of the above.
COMPOSED = {
    "\u0149": "'n",
    "\u2034": "'''",
    "\u2037": "'''",
    "\u2057": "''''",
}
TYPED = (
    dict.fromkeys(APOSTROPHES, "'")
    | dict.fromkeys(QUOTATION_MARKS, '"')
    | dict.fromkeys(HYPHENS, "-")
    | COMPOSED
)
# All of the category Cf (soft hyphens, zero-width and bidi marks, tags), the combining grapheme
# joiner and the variation selectors.
UNSEEN = (
    "\u00ad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180b-\u180f\u200b-\u200f"
    "\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff9-\ufffb\U000110bd\U000110cd"
    "\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0001"
    "\U000e0020-\U000e007f\U000e0100-\U000e01ef"
)
_TYPESET = re.compile(f"[{UNSEEN}{''.join(TYPED)}]")


def typed(text: str) -> str:
    """`text` with apostrophes, quotation marks and hyphens of a keyboard, and without characters
    that nobody sees."""
    return _TYPESET.sub(lambda found: TYPED.get(found[0], ""), text)
