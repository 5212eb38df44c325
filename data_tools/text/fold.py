"""The form of a text in which queries, captions and search words are compared."""

from __future__ import annotations

import unicodedata


def fold(text: str) -> str:
    """`text` in NFKC, case-folded, trimmed, with runs of white space as one space:
    "Ｉce  HOCKEY " -> "ice hockey".

    It is normalised again after folding, because folding can leave NFKC (U+1E9E folds to "ss",
    U+0130 to "i" + U+0307).
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def has_word(text: str) -> bool:
    """Whether `text` has a letter or a digit of any script."""
    return any(unicodedata.category(char)[0] in "LN" for char in text)
