"""Text to count words in: plain text, Wikipedia dumps, and what wikiextractor made of them.

wikiextractor's output is read at the speed of the word counts. A dump (pages-articles.xml.bz2) is
parsed by mwparserfromhell page by page, which is about ten times slower: for all of English
Wikipedia take wikiextractor (several processes), for a smaller wiki either.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO

from data_tools.queries.files import lines, opened, plain_name
from data_tools.queries.optional import load
from data_tools.schema import DataError

WIKIEXTRACTOR = re.compile(r"wiki_\d+$|.*\.jsonl?$")
# Links that are no part of the sentence: [[File:Cat.jpg|thumb|left]], [[Category:Cats]]
NOT_PROSE = ("file:", "image:", "category:")
NOT_PROSE_TAGS = ("ref", "table", "gallery", "math", "timeline", "syntaxhighlight", "score")


@dataclass(frozen=True, slots=True)
class Article:
    title: str
    """Empty where the file has no titles."""
    text: str


def read_articles(path: Path) -> Iterator[Article]:
    """The articles of one file, one in memory at a time; of plain text, the lines. DataError names
    the file and the line that cannot be read."""
    name = plain_name(path)
    if name.endswith(".xml"):
        return _dump(path)
    if WIKIEXTRACTOR.match(name):
        return _extracted(path)
    return (Article("", text) for _, text in lines(path))


def _extracted(path: Path) -> Iterator[Article]:
    with opened(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                # JSON can spell half a surrogate pair, which no UTF-8 file can hold
                title = str(row["title"]).encode(errors="ignore").decode()
                yield Article(title, str(row["text"]))
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path}: line {number} is no JSON object with title and text ({error!r}): run "
                    f"wikiextractor with --json"
                ) from None


def _dump(path: Path) -> Iterator[Article]:
    """Pages of the main name space that are no redirects, without their mark-up."""
    parser = load("mwparserfromhell", f"the Wikipedia dump {path}")
    with opened(path) as file:
        try:
            yield from _pages(file, parser)
        except ET.ParseError as error:
            raise DataError(f"{path} is no whole XML dump: {error}; download it again") from error


def _pages(file: IO[bytes], parser: ModuleType) -> Iterator[Article]:
    root: ET.Element | None = None
    for event, element in ET.iterparse(file, events=("start", "end")):
        if root is None:
            root = element
        if event == "end" and _local(element) == "page":
            found = {_local(child): child for child in element.iter()}
            text = found["text"].text if "text" in found else None
            is_article = "ns" not in found or found["ns"].text == "0"
            if text and is_article and "redirect" not in found and "title" in found:
                yield Article(found["title"].text or "", _prose(text, parser.parse))
            root.clear()


def _local(element: ET.Element) -> str:
    """The tag without the name space of the export's version."""
    return element.tag.rpartition("}")[2]


def _prose(wikitext: str, parse: Callable) -> str:
    tree = parse(wikitext)
    for link in tree.filter_wikilinks(recursive=False):
        if str(link.title).strip().lower().startswith(NOT_PROSE):
            tree.remove(link)
    for tag in tree.filter_tags(recursive=False):
        if str(tag.tag).strip().lower() in NOT_PROSE_TAGS:
            tree.remove(tag)
    return str(tree.strip_code())
