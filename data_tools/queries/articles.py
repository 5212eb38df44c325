"""Text to count words in: plain text, Wikipedia dumps, and the output of wikiextractor.

wikiextractor's output is read as fast as words are counted, 4 MB/s. For a dump
(pages-articles.xml.bz2), one process of mwparserfromhell reads about 0.3 MB of mark-up per second:
English Wikipedia (95 GB) takes 90 core-hours, so use several processes or wikiextractor.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import IO

from data_tools.queries.files import lines, opened, opened_text, plain_name
from data_tools.queries.optional import load
from data_tools.tables.schema import DataError
from data_tools.work.processes import prepare_worker

WIKIEXTRACTOR = re.compile(r"wiki_\d+$|.*\.jsonl?$")
# Links that are not part of a sentence: [[File:Cat.jpg|thumb|left]], [[Category:Cats]]
NOT_PROSE = ("file:", "image:", "category:")
NOT_PROSE_TAGS = ("ref", "table", "gallery", "math", "timeline", "syntaxhighlight", "score")

PAGES_PER_BATCH = 64
BATCHES_AHEAD = 4
LONGEST_BATCH_S = 600.0


@dataclass(frozen=True, slots=True)
class Article:
    """One article, or one line of a plain text."""

    title: str
    """Empty where the file has no titles."""
    text: str


def read_articles(path: Path, num_processes: int = 1) -> Iterator[Article]:
    """The articles of one file, a few in memory at a time. A plain text gives one article per line.
    A dump's mark-up is read by `num_processes` processes. DataError names the file and the line
    that cannot be read."""
    name = plain_name(path)
    if name.endswith(".xml"):
        return _dump(path, num_processes)
    if WIKIEXTRACTOR.match(name):
        return _extracted(path)
    return (Article("", text) for _, text in lines(path))


def _extracted(path: Path) -> Iterator[Article]:
    with opened_text(path) as file:
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


def _dump(path: Path, num_processes: int) -> Iterator[Article]:
    """Pages of the main name space, without redirects and without mark-up, in the order of the
    dump."""
    load("mwparserfromhell", f"the Wikipedia dump {path}")
    with opened(path) as file:
        try:
            yield from _without_markup(_pages(file), num_processes)
        except ET.ParseError as error:
            raise DataError(f"{path} is no whole XML dump: {error}; download it again") from error


def _pages(file: IO[bytes]) -> Iterator[Article]:
    root: ET.Element | None = None
    for event, element in ET.iterparse(file, events=("start", "end")):
        if root is None:
            root = element
        if event == "end" and _local(element) == "page":
            fields = {_local(child): child for child in element.iter()}
            text = fields["text"].text if "text" in fields else None
            is_article = "ns" not in fields or fields["ns"].text == "0"
            if text and is_article and "redirect" not in fields and "title" in fields:
                yield Article(fields["title"].text or "", text)
            root.clear()


def _local(element: ET.Element) -> str:
    """The tag without its XML name space, which names the version of the dump."""
    return element.tag.rpartition("}")[2]


def _without_markup(pages: Iterator[Article], num_processes: int) -> Iterator[Article]:
    """Remove the mark-up in `num_processes` processes. Only a few batches per process are on their
    way at a time, so that neither pages nor results fill the memory."""
    if num_processes == 1:
        yield from map(_prose, pages)
        return
    waiting: deque[Future[list[Article]]] = deque()
    with ProcessPoolExecutor(num_processes, get_context("spawn"), prepare_worker) as pool:
        try:
            while batch := list(islice(pages, PAGES_PER_BATCH)):
                waiting.append(pool.submit(_prose_of_all, batch))
                if len(waiting) > BATCHES_AHEAD * num_processes:
                    yield from waiting.popleft().result(LONGEST_BATCH_S)
            while waiting:
                yield from waiting.popleft().result(LONGEST_BATCH_S)
        except (BrokenProcessPool, FutureTimeoutError) as error:
            raise DataError(
                f"a process that reads mark-up ended or stood still ({error!r}): give the job more "
                f"memory or lower queries.text.num_processes"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _prose_of_all(pages: list[Article]) -> list[Article]:
    return [_prose(page) for page in pages]


def _prose(page: Article) -> Article:
    tree = load("mwparserfromhell", "a Wikipedia dump").parse(page.text)
    tree.nodes = [node for node in tree.nodes if not _is_aside(node)]
    return Article(page.title, str(tree.strip_code()))


def _is_aside(node: object) -> bool:
    """Whether a node of the page is a link or a tag that is not part of a sentence."""
    name = str(getattr(node, "tag", "")).strip().lower()
    link = str(getattr(node, "title", "")).strip().lower()
    return name in NOT_PROSE_TAGS or link.startswith(NOT_PROSE)
