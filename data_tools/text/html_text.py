"""The text of HTML fragments that a browser shows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from data_tools.text.html_tags import End, Start, tokens

# Elements that browsers do not show, or show only if they cannot do what the element asks for.
HIDDEN = frozenset(
    "audio canvas datalist head iframe noembed noframes noscript object rp script style template "
    "title video".split()
)
# The text of inline elements joins its neighbours ("<b>ice</b>s"); all other elements separate
# words.
INLINE = frozenset(
    "a abbr acronym b bdi bdo big cite code data del dfn em font i ins kbd label mark nobr q rb rt "
    "ruby s samp small span strike strong sub sup time tt u var wbr".split()
)
EMPTY = frozenset(
    "area base basefont br col embed frame hr img input keygen link meta param source track "
    "wbr".split()
)
# A start tag ends an open element of these names, whose end tag may be left out.
ENDED_BY: dict[str, frozenset[str]] = {
    "dd": frozenset({"dd", "dt"}),
    "dt": frozenset({"dd", "dt"}),
    "li": frozenset({"li"}),
    "option": frozenset({"option"}),
    "p": frozenset({"p"}),
    "td": frozenset({"td", "th"}),
    "th": frozenset({"td", "th"}),
    "tr": frozenset({"td", "th", "tr"}),
}
# "language" is the label before each language of a description on Wikimedia's wikis.
HIDDEN_CLASSES = frozenset({"hidden", "language", "sr-only", "visually-hidden"})
LONGEST_LABEL = 60
_DISPLAY = re.compile(r"(?:^|;)\s*(display|visibility)\s*:\s*([a-z-]+)")
_CSS_COMMENT = re.compile(r"/\*.*?(?:\*/|\Z)", re.DOTALL)


def html_to_text(fragment: str, is_label: Callable[[str], bool] = lambda text: False) -> str:
    """The visible text of an HTML fragment, with entities decoded and runs of white space as one
    space. Broken HTML raises no error, and takes no longer than any other.

    Args:
        is_label: says of the whole text of an element whether it is to be left out.
    """
    page = _Page(is_label)
    for token in tokens(fragment):
        if isinstance(token, Start):
            page.start(token)
        elif isinstance(token, End):
            page.end(token.name)
        elif not page.num_hidden:
            page.parts.append(token)
    return " ".join("".join(page.parts).split())


@dataclass
class _Open:
    name: str
    is_hidden: bool
    place: int
    """How many parts there were before it."""


@dataclass
class _Page:
    is_label: Callable[[str], bool]
    parts: list[str] = field(default_factory=list)
    opened: list[_Open] = field(default_factory=list)
    names: Counter[str] = field(default_factory=Counter)
    """How many of the open elements have each name."""
    num_hidden: int = 0

    def start(self, tag: Start) -> None:
        while self.opened and self.opened[-1].name in ENDED_BY.get(tag.name, ()):
            self._close()
        if tag.name not in INLINE:
            self.parts.append(" ")
        if tag.name not in EMPTY:
            is_hidden = tag.name in HIDDEN or _is_hidden(tag.attributes)
            self.opened.append(_Open(tag.name, is_hidden, len(self.parts)))
            self.names[tag.name] += 1
            self.num_hidden += is_hidden

    def end(self, name: str) -> None:
        if name not in INLINE:
            self.parts.append(" ")
        if self.names[name]:
            while self._close() != name:
                pass

    def _close(self) -> str:
        element = self.opened.pop()
        self.names[element.name] -= 1
        self.num_hidden -= element.is_hidden
        inside = self.parts[element.place : element.place + LONGEST_LABEL]
        if len(self.parts) <= element.place + LONGEST_LABEL and self._is_label(inside):
            self.parts[element.place :] = [" "]
        return element.name

    def _is_label(self, parts: list[str]) -> bool:
        short = sum(map(len, parts)) <= LONGEST_LABEL
        return short and self.is_label(" ".join("".join(parts).split()))


def _is_hidden(attributes: dict[str, str]) -> bool:
    if "hidden" in attributes:
        return True
    if not HIDDEN_CLASSES.isdisjoint(attributes.get("class", "").lower().split()):
        return True
    css = _CSS_COMMENT.sub("", attributes.get("style", "").lower())
    last = dict(_DISPLAY.findall(css))
    return last.get("display") == "none" or last.get("visibility") in ("hidden", "collapse")
