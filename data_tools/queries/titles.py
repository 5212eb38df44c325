"""Names of pages, most viewed first: tables of title and views, Wikimedia's pageviews files, or the
titles that came with the text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from data_tools.config.queries import TitlesConfig
from data_tools.queries.counting import SpilledCounts, rows
from data_tools.queries.files import expand, is_table, lines, plain_name, table_rows
from data_tools.tables.schema import DataError

# captions say Mercury, not "Mercury (planet)"
QUALIFIER = re.compile(r"(?<=\S)\s*\([^()]*\)$")


def readable(title: str) -> str:
    """The name as in a sentence: without underscores and without a qualifier in brackets."""
    return QUALIFIER.sub("", " ".join(title.replace("_", " ").split()))


def viewed_titles(
    config: TitlesConfig, folder: Path, max_keys: int, memory_limit_mib: int
) -> Iterator[tuple[str, str]]:
    """Yield (title, "titles:VIEWS"), most viewed first; ties in the order of their code points.
    Views are summed over rows, files, and pages whose titles differ only in the qualifier."""
    views = SpilledCounts(folder, "views", max_keys)
    for path in expand(config.paths):
        for title, count in _rows(path, config):
            views.add(readable(title), count)
    sql = f"SELECT key, count FROM {views.summed()} WHERE count >= ? ORDER BY count DESC, key"
    for title, count in rows(sql, [config.min_views], folder, memory_limit_mib):
        yield title, f"titles:{count}"


def text_titles(
    titles: SpilledCounts, folder: Path, memory_limit_mib: int
) -> Iterator[tuple[str, str]]:
    """Yield (title, "titles:text") of the counted articles, longest article first."""
    sql = f"SELECT key FROM {titles.summed()} ORDER BY count DESC, key"
    for (title,) in rows(sql, [], folder, memory_limit_mib):
        yield readable(title), "titles:text"


def _rows(path: Path, config: TitlesConfig) -> Iterator[tuple[str, int]]:
    if is_table(path):
        setting = "queries.titles.title_column and queries.titles.views_column"
        columns = [config.title_column, config.views_column]
        for row, (title, views) in enumerate(table_rows(path, columns, setting), start=1):
            yield title, _number(views, path, f"row {row}")
    elif plain_name(path).startswith("pageviews-"):
        yield from _pageviews(path, config.pageviews_domain)
    else:
        for number, line in lines(path):
            if line.strip():
                title, _, views = line.rpartition("\t")
                yield title, _number(views, path, f"line {number}")


def _pageviews(path: Path, domain: str) -> Iterator[tuple[str, int]]:
    """(title, views) of one hour, from lines such as "en Main_Page 242332 4737756101". Titles with
    a colon are left out: they are pages of other name spaces."""
    for number, line in lines(path):
        fields = line.split(" ")
        if fields[0] == domain and len(fields) == 4 and ":" not in fields[1]:
            yield fields[1], _number(fields[2], path, f"line {number}")


def _number(text: str, path: Path, place: str) -> int:
    try:
        count = int(text)
    except ValueError:
        count = -1
    if count < 0:
        raise DataError(
            f"{path}: {place}: {text!r} is no number of views; give title, tab, views in a .txt, "
            f"and whole numbers >= 0"
        )
    return count
