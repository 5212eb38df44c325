"""Cuts HTML into tags and text, as browsers do (https://html.spec.whatwg.org/#tokenization).

Descriptions of pictures are HTML that strangers wrote, and one of them must not end a stage: no
text is an error here, and the time is linear in its length. The standard library's `html.parser`
raises AssertionError for "<![" and takes quadratic time for many "<!--" or "<a b='".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from data_tools.ground.entities import unescaped

# Their content is text up to their end tag, whatever it holds.
RAW = frozenset("iframe noembed noframes script style textarea title xmp".split())
_RAW_ENDS = {name: re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE) for name in RAW}
_NAME = re.compile(r"[a-zA-Z][^\s/>]*")
_BETWEEN = re.compile(r"[\s/]*")
_ATTRIBUTE = re.compile(r"([^\s/>][^\s/>=]*)(\s*=\s*)?")
_UNQUOTED = re.compile(r"[^\s>]*")


@dataclass(frozen=True)
class Start:
    name: str
    """In lower case."""
    attributes: dict[str, str] = field(default_factory=dict)
    """Names in lower case; an attribute without a value has ""."""


@dataclass(frozen=True)
class End:
    name: str


Token = Start | End | str


def tokens(fragment: str) -> Iterator[Token]:
    """The start tags, end tags and texts of `fragment`. Comments and declarations are left out, and
    so is what follows a tag or comment that is not closed."""
    at = 0
    while at < len(fragment):
        opens = fragment.find("<", at)
        if opens < 0:
            yield unescaped(fragment[at:])
            return
        if opens > at:
            yield unescaped(fragment[at:opens])
        following = fragment[opens + 1 : opens + 3]
        if following[:1].isalpha() and following[:1].isascii():
            start, at = _start_tag(fragment, opens + 1)
            if start is not None:
                yield start
                if start.name in RAW:
                    ends = _RAW_ENDS[start.name].search(fragment, at)
                    stops = ends.start() if ends else len(fragment)
                    yield fragment[at:stops]
                    at = stops
        elif following[:1] == "/" and following[1:].isalpha() and following[1:].isascii():
            name = _NAME.match(fragment, opens + 2)
            at = _after(fragment, ">", opens)
            if name and fragment[at - 1] == ">":
                yield End(name[0].lower())
        elif following[:1] in ("!", "?") or (following[:1] == "/" and len(following) == 2):
            at = _after_comment(fragment, opens)
        else:
            yield "<"
            at = opens + 1


def _after(text: str, end: str, at: int) -> int:
    """The place after the next `end`; the end of the text if there is none."""
    found = text.find(end, at)
    return found + len(end) if found >= 0 else len(text)


def _after_comment(text: str, opens: int) -> int:
    if not text.startswith("<!--", opens):
        return _after(text, ">", opens)
    for empty in ("<!-->", "<!--->"):
        if text.startswith(empty, opens):
            return opens + len(empty)
    return _after(text, "-->", opens + 4)


def _start_tag(text: str, at: int) -> tuple[Start | None, int]:
    """The tag whose name begins at `at`, and the place after it; None if it is not closed."""
    name = _NAME.match(text, at)
    assert name is not None
    at = name.end()
    attributes: dict[str, str] = {}
    while True:
        between = _BETWEEN.match(text, at)
        at = between.end() if between else at
        attribute = _ATTRIBUTE.match(text, at)
        if attribute is None:  # ">" or the end of the text
            closed = at < len(text)
            return (Start(name[0].lower(), attributes) if closed else None), at + 1
        at, value = attribute.end(), ""
        if attribute[2]:
            value, at = _value(text, at)
        attributes.setdefault(attribute[1].lower(), unescaped(value))


def _value(text: str, at: int) -> tuple[str, int]:
    quote = text[at : at + 1]
    if quote in ('"', "'"):
        end = _after(text, quote, at + 1)
        return text[at + 1 : end - 1], end
    unquoted = _UNQUOTED.match(text, at)
    return (unquoted[0], unquoted.end()) if unquoted else ("", at)
