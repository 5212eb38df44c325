"""HTML entities in captions, also those that were escaped twice ("AT&amp;amp;T")."""

from __future__ import annotations

import html
import html.entities
import re
from collections.abc import Callable

NUMERIC = re.compile(r"#(?:[0-9]{1,10}|[xX][0-9a-fA-F]{1,8})")
ENTITY = re.compile(rb"&(?:#[0-9xX]|[A-Za-z])[0-9A-Za-z]*;")
LONGEST_NAME = max(map(len, html.entities.html5))
# How much of the text that is done may still become part of an entity: "&a", then "&#109;p;".
KEPT, TOO_LONG = 1_000, 4_000


def may_have_entities(text: str) -> bool:
    """Whether `text` has what every entity has."""
    return "&" in text and ";" in text


def entities_at(content: bytes | memoryview) -> list[int]:
    """Where in a text (UTF-8) something begins that may be an entity."""
    return [found.start() for found in ENTITY.finditer(content)]


def decoded(text: str, written: Callable[[str], str] = str) -> str:
    """`text` without entities, however often they were escaped: "&amp;lt;" -> "<".

    Only what ends in a semicolon is one: "fish&chips" has none. The time is linear in the length,
    whatever the text.

    Args:
        written: gives what is written for the character that an entity stands for.
    """
    done: list[str] = []
    tail, *pieces = text.split(";")
    for piece in pieces:
        tail = _closed(tail, written, done) + piece
        if len(tail) > TOO_LONG:
            done.append(tail[:-KEPT])
            tail = tail[-KEPT:]
    return "".join([*done, tail])


def _closed(tail: str, written: Callable[[str], str], done: list[str]) -> str:
    """What may become part of the next entity, if a semicolon follows `tail`. The rest is moved to
    `done`."""
    while True:
        start = tail.rfind("&", max(0, len(tail) - LONGEST_NAME))
        character = _character(tail[start + 1 :]) if start >= 0 else None
        if character is None:
            done.append(f"{tail};")
            return ""
        tail = tail[:start] + written(character)
        if not tail.endswith(";"):
            return tail
        tail = tail[:-1]  # a semicolon that was an entity can end another one


def _character(name: str) -> str | None:
    """What "&name;" stands for; None if it is no entity. "" for characters that HTML forbids."""
    if NUMERIC.fullmatch(name):
        return html.unescape(f"&{name};")
    names = html.entities.html5
    return names.get(f"{name};") or names.get(f"{name.casefold()};")
