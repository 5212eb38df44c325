"""The form of a text in which queries, captions and search words are compared."""

from __future__ import annotations

import unicodedata

from data_tools.text.entities import decoded, may_have_entities
from data_tools.text.typography import typed


def fold(text: str) -> str:
    """`text` as it is compared: what looks the same on a page is the same.

    NFKC, case-folded, trimmed, with runs of white space as one space; HTML entities decoded;
    typographic apostrophes, quotation marks and hyphens as those of a keyboard; characters that
    nobody sees (soft hyphens, zero-width and bidi marks) left out:
    "Ｉce  HOCKEY " -> "ice hockey", "Mother\u2019s Day" -> "mother's day", "AT&amp;T" -> "at&t".
    Folding what is folded changes nothing.
    """
    return " ".join(normal_characters(text).split())


def normal_characters(text: str, case_sensitive: bool = False) -> str:
    """`fold` without the rules of white space, and without case folding if `case_sensitive`. No
    line feed comes or goes, so that many lines can be given at once."""
    if text.isascii() and "&" not in text:  # the same, and faster
        plain = text.replace("`", "'")
        return plain if case_sensitive else plain.lower()
    text = unicodedata.normalize("NFKC", typed(text))
    if may_have_entities(text):
        entities = decoded(text, lambda char: _decoded_character(char, case_sensitive))
        text = unicodedata.normalize("NFKC", entities)
    if not case_sensitive:
        # Folding can leave NFKC: U+1E9E folds to "ss", U+0130 to "i" + U+0307.
        text = unicodedata.normalize("NFKC", text.casefold())
    return text


def _decoded_character(char: str, case_sensitive: bool) -> str:
    """What an entity stands for, in normal form, so that it can be part of the next entity
    ("&#xFF06;lt;" is "&lt;"). A line feed would part lines that are given together."""
    normal = normal_characters(char, case_sensitive)
    return "".join(" " if each.isspace() else each for each in normal)


def has_word(text: str) -> bool:
    """Whether `text` has a letter or a digit of any script."""
    return any(unicodedata.category(char)[0] in "LN" for char in text)
