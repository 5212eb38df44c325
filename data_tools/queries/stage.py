"""Stage 1: the sources of queries become one table, without duplicates.

Sources are read in a fixed order, and the queries of each in an order that depends on its content
only (rank, file, hash), so that the same inputs give the same ids on any machine. A query that is
in several sources belongs to the first.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from data_tools.config import DatasetJob, QueriesConfig
from data_tools.config.queries import Lemmas, WordCounts, noun_fields
from data_tools.queries.composed import phrases
from data_tools.queries.files import content_hashes, expand
from data_tools.queries.ngrams import TextCounts, bigrams, count_text, unigrams
from data_tools.queries.titles import text_titles, viewed_titles
from data_tools.queries.user_list import UserList, read_user_list
from data_tools.queries.word_frequencies import data_file, frequent_words
from data_tools.queries.wordnet import WordNet, wordnet_files
from data_tools.tables.schema import QUERIES, DataError, DatasetPaths, write_table
from data_tools.text.fold import fold, has_word

Queries = Iterator[tuple[str, str]]

# MetaCLIP (arXiv 2309.16671), Table 1
PUBLISHED = {"wordnet": 86_654, "unigrams": 251_465, "bigrams": 100_646, "titles": 61_235}


@dataclass
class Source:
    """A source of (query, origin), and counts of what became of its queries. It is read only up to
    its limit and that of the whole list."""

    name: str
    queries: Queries
    limit: int | None = None
    """None: no limit."""
    num_read: int = 0
    num_unusable: int = 0
    """Queries without a letter or digit."""
    num_duplicates: int = 0
    num_kept: int = 0


def run(job: DatasetJob, paths: DatasetPaths) -> dict[str, int]:
    """Read every source, write the queries table, and print how many queries each source gave;
    returns the counts. DataError names what cannot be read."""
    config = job.queries
    counts: dict[str, int] = {}
    sources = []
    user = UserList()
    if config.path:
        user = read_user_list(config)
        counts["lines"] = user.num_lines
        sources.append(
            Source("file", iter(user.queries), None, user.num_duplicates, 0, user.num_duplicates)
        )
    folder = paths.root / "tables" / ".counts"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        sources += _generated(config, folder)
        table = _merged(sources, config.total)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    generated = [source for source in sources if source.name != "file"]
    if generated or config.total:
        print(_account(sources), flush=True)
    for file in user.files:
        print(file.line(), flush=True)
    if not table.num_rows:
        raise DataError(
            "the sources gave no query: lower min_count, min_pair_count, min_views or "
            "wordfreq_min_zipf below queries"
        )
    if config.total and table.num_rows < config.total:
        print(
            f"queries: {table.num_rows:,} of queries.total = {config.total:,}: the sources have no "
            f"more; add one, raise a limit or lower a minimum",
            file=sys.stderr,
        )
    write_table(table, paths.table("queries"), QUERIES)
    counts |= {source.name: source.num_kept for source in generated}
    counts["duplicates"] = sum(source.num_duplicates for source in sources)
    return counts | {"queries": table.num_rows}


def inputs(job: DatasetJob) -> list[str]:
    """Hashes of every file that the queries table is made of: the stage runs again if one
    changes."""
    config = job.queries
    files = expand([config.path]) if config.path else []
    if _needs_wordnet(config):
        files += wordnet_files(Path(config.wordnet.dict_dir))
    if _needs_text(config):
        files += expand(config.text.paths)
    files += expand(config.titles.paths)
    if config.unigrams.counts is WordCounts.wordfreq:
        files.append(data_file(config.unigrams.wordfreq_language))
    if config.composed.noun_min_zipf is not None and noun_fields(config.composed):
        files.append(data_file("en"))
    return content_hashes(files, Path(job.out_dir) / ".queries_inputs.json")


def _needs_wordnet(config: QueriesConfig) -> bool:
    used = config.wordnet.lemmas is not Lemmas.none or bool(noun_fields(config.composed))
    return used or (config.text.wordnet_glosses and _needs_text(config))


def _needs_text(config: QueriesConfig) -> bool:
    counted = config.unigrams.counts is WordCounts.text or config.bigrams.limit is not None
    return counted or config.titles.from_text


def _generated(config: QueriesConfig, folder: Path) -> list[Source]:
    """The sources other than the user's file, in their fixed order."""
    wordnet = WordNet(config.wordnet.dict_dir) if _needs_wordnet(config) else None
    counts = count_text(config, wordnet, folder) if _needs_text(config) else None
    sources = []
    if wordnet is not None and config.wordnet.lemmas is not Lemmas.none:
        lemmas = wordnet.queries(config.wordnet.lemmas)
        sources.append(Source("wordnet", lemmas, config.wordnet.limit))
    if config.unigrams.counts is not WordCounts.none:
        sources.append(Source("unigrams", _unigrams(config, counts, folder), config.unigrams.limit))
    if counts is not None and config.bigrams.limit:
        pairs = bigrams(counts, config.bigrams.min_pair_count, folder, config.text.memory_limit_mib)
        sources.append(Source("bigrams", pairs, config.bigrams.limit))
    if config.titles.paths or config.titles.from_text:
        sources.append(Source("titles", _titles(config, counts, folder), config.titles.limit))
    if config.composed.templates:
        composed = phrases(config.composed, config.seed, wordnet)
        sources.append(Source("composed", composed, config.composed.limit))
    return sources


def _unigrams(config: QueriesConfig, counts: TextCounts | None, folder: Path) -> Queries:
    words = config.unigrams
    if words.counts is WordCounts.wordfreq or counts is None:
        return frequent_words(words.wordfreq_language, words.wordfreq_min_zipf)
    return unigrams(counts, words.min_count, folder, config.text.memory_limit_mib)


def _titles(config: QueriesConfig, counts: TextCounts | None, folder: Path) -> Queries:
    text = config.text
    if config.titles.paths:
        yield from viewed_titles(
            config.titles, folder, text.max_keys_in_memory, text.memory_limit_mib
        )
    if config.titles.from_text and counts is not None:
        yield from text_titles(counts.titles, folder, text.memory_limit_mib)


def _merged(sources: list[Source], total: int | None) -> pa.Table:
    """The table of the first `total` distinct queries (None: all), in the order of the sources.
    Sets the counts of each source."""
    kept: dict[str, tuple[str, str]] = {}
    for source in sources:
        budget = total - len(kept) if total else sys.maxsize
        _take(source, min(budget, source.limit or sys.maxsize), kept)
    queries = [query for query, _ in kept.values()]
    columns = [
        pa.array(range(len(kept)), pa.int32()),
        pa.array(queries, pa.string()),
        pa.array(kept.keys(), pa.string()),
        pa.array([origin for _, origin in kept.values()], pa.string()),
    ]
    return pa.table(columns, schema=QUERIES)


def _take(source: Source, budget: int, kept: dict[str, tuple[str, str]]) -> None:
    """Move queries of `source` into `kept` (by folded form), up to `budget` new ones."""
    while source.num_kept < budget:
        query, origin = next(source.queries, ("", ""))
        if not origin:
            return
        source.num_read += 1
        folded = fold(query)
        if not has_word(folded):
            source.num_unusable += 1
        elif folded in kept:
            source.num_duplicates += 1
        else:
            source.num_kept += 1
            kept[folded] = (query, origin)


def _account(sources: list[Source]) -> str:
    """The printed table: queries read, left out and kept per source, and MetaCLIP's published
    sizes."""
    table: list[tuple[str, ...]] = [("source", "read", "unusable", "duplicate", "kept", "MetaCLIP")]
    for source in sources:
        published = PUBLISHED.get(source.name)
        numbers = (source.num_read, source.num_unusable, source.num_duplicates, source.num_kept)
        cells = tuple(f"{number:,}" for number in numbers)
        table.append((source.name, *cells, f"{published:,}" if published else "-"))
    sums = [
        sum(source.num_read for source in sources),
        sum(source.num_unusable for source in sources),
        sum(source.num_duplicates for source in sources),
        sum(source.num_kept for source in sources),
        sum(PUBLISHED.values()),
    ]
    table.append(("total", *(f"{number:,}" for number in sums)))
    return "\n".join(f"{row[0]:>10}" + "".join(f"{cell:>11}" for cell in row[1:]) for row in table)
