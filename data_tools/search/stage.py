"""Stage 3: search servers are asked for the queries.

A server is asked once for each query; its answers are kept in a cursor file, so that a killed run
goes on where it was. The table depends on the answers alone, not on their timing. A query that got
no answer is asked again by the next run. As long as more than search.max_failed_queries queries
have no answer, the stage ends with an error and is not done.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

import pyarrow as pa

from data_tools import match
from data_tools.config import DatasetJob, SearchConfig, SourcesConfig
from data_tools.search.base import Candidate, SearchSource, SourceError, SourceStopped
from data_tools.search.brave import BraveSource
from data_tools.search.commons import CommonsSource
from data_tools.search.cursor import Cursor
from data_tools.search.flickr import FlickrSource
from data_tools.search.openverse import OpenverseSource
from data_tools.search.searxng import SearxngSource
from data_tools.tables.schema import (
    CANDIDATES,
    QUERIES,
    DataError,
    DatasetPaths,
    make_uid,
    read_table,
    table_writer,
)
from data_tools.work.progress import StageProgress

# The servers are asked in this order, and their answers are in the table in this order.
SERVERS = (CommonsSource, OpenverseSource, FlickrSource, BraveSource, SearxngSource)
ROWS_PER_BATCH = 10_000
SHOWN_FAILURES = 5


@dataclass
class Unanswered:
    """The queries that were asked and got no answer: their number, and the reasons of the first
    few."""

    num_queries: int = 0
    shown: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    """Messages about the servers that are not asked any more."""

    def add(self, source: SearchSource, query: str, reason: str) -> None:
        """Note why a query got no answer."""
        if len(self.shown) < SHOWN_FAILURES:
            self.shown.append(f"{source.name} {query!r}: {reason}")

    def message(self) -> str:
        """The text about them for the user."""
        head = f"{_queries(self.num_queries)} got no answer"
        return "\n  ".join([head, *self.stopped, *self.shown])


def run(job: DatasetJob, paths: DatasetPaths) -> dict[str, int]:
    """Ask every enabled server and write the searched table: one row per answer of a query, in the
    order of servers, queries, answers. Returns the counts.

    If a server fails, the others are still asked. Raises DataError if a key is missing (before
    anything is asked), and at the end if more than search.max_failed_queries queries have no
    answer; all answers stay in the cursor files.
    """
    names = read_table(paths.table("queries"), QUERIES)["query"].to_pylist()
    asked = wanted_queries(job, paths, names)
    counts = {"queries": len(names), "servers": 0, "queries_asked": 0, "resumed": 0}
    unanswered = Unanswered()
    with ExitStack() as stack:
        sources = search_sources(job.sources, paths)
        if sources:
            counts |= {"servers": len(sources), "queries_asked": len(asked)}
        else:
            print("search: no server is enabled, none was asked", flush=True)
        cursors = []
        for source in sources:
            stack.callback(source.close)
            cursor = stack.enter_context(
                Cursor(paths.search_cursor, source, job.search.limit_per_query)
            )
            cursors.append(cursor)
            counts["resumed"] += sum(names[number] in cursor for number in asked)
        for source, cursor in zip(sources, cursors):
            ask(source, [names[number] for number in asked], cursor, job.search, unanswered)
            for name, count in source.counts().items():
                counts[name] = counts.get(name, 0) + count
        _check_unanswered(unanswered, job.search)
        counts |= _write(zip(sources, cursors), names, asked, paths)
    return counts | {"failed_queries": unanswered.num_queries}


def target(job: DatasetJob) -> int:
    """Queries with fewer pool matches than this are asked for; 0 asks for all queries."""
    return (job.balance.max_per_query or 0) if job.search.deficit_only else 0


def wanted_queries(job: DatasetJob, paths: DatasetPaths, names: Sequence[str]) -> Sequence[int]:
    """Ids of the queries that the servers are asked for: all, or those with too few pool
    matches."""
    if not job.search.deficit_only:
        return range(len(names))
    counts = match.counts_per_query(paths, len(names))
    return [number for number, count in enumerate(counts) if count < target(job)]


def search_sources(config: SourcesConfig, paths: DatasetPaths) -> list[SearchSource]:
    """The enabled servers, in their order. Raises DataError, which names the variable, for a key
    that is missing."""
    return [
        server(config, paths.search_cursor)
        for server in SERVERS
        if getattr(config, server.name).enabled
    ]


def card_facts(config: SourcesConfig) -> list[str]:
    """One line per enabled server for the data set's card: its address, and the permission."""
    facts = []
    for name in (server.name for server in SERVERS):
        settings = getattr(config, name)
        if settings.enabled:
            permission = getattr(settings, "permission", "")
            by = f", with the permission: {permission}" if permission else ""
            facts.append(f"{name}: {settings.endpoint}{by}")
    return facts


def ask(
    source: SearchSource,
    queries: list[str],
    cursor: Cursor,
    config: SearchConfig,
    unanswered: Unanswered,
) -> None:
    """Ask for every query that the cursor lacks, and append the answers there; failures are added
    to `unanswered`.

    The server is not asked any more after a SourceStopped, and after `give_up_after` failures in a
    row.
    """
    todo = (query for query in queries if query not in cursor)
    in_a_row = 0
    with StageProgress(f"search {source.name}", total=len(queries)) as progress:
        progress.update(sum(query in cursor for query in queries))
        # closing(): an exception must stop the threads at once, not when the generator is collected
        with closing(_answered(source, todo, config.limit_per_query)) as answered:
            for query, future in answered:
                progress.advance()  # asked, whether there is an answer or not
                try:
                    cursor.add(query, future.result())
                except SourceError as error:
                    unanswered.add(source, query, str(error))
                    in_a_row += 1
                    if isinstance(error, SourceStopped) or in_a_row >= config.give_up_after:
                        message = _given_up(source, in_a_row, error, cursor)
                        print(message, file=sys.stderr, flush=True)
                        unanswered.stopped.append(message)
                        break
                else:
                    in_a_row = 0
    unanswered.num_queries += sum(query not in cursor for query in queries)


def _answered(
    source: SearchSource, queries: Iterator[str], limit: int
) -> Generator[tuple[str, Future[list[Candidate]]], None, None]:
    """Run the searches in `source.concurrency` threads; yield each (query, future) as it is done.

    The threads never get more queries than they can work on, so that no queue is left to wait for
    when the search stops.
    """
    pool = ThreadPoolExecutor(source.concurrency, thread_name_prefix=source.name)
    running: dict[Future[list[Candidate]], str] = {}
    try:
        while True:
            for query in itertools.islice(queries, source.concurrency - len(running)):
                running[pool.submit(lambda q: list(source.search(q, limit)), query)] = query
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), future
    finally:
        source.close()  # wakes the threads that wait for their turn
        pool.shutdown(wait=True, cancel_futures=True)


def _check_unanswered(unanswered: Unanswered, config: SearchConfig) -> None:
    """Raise DataError if too many queries have no answer; print a message about a smaller
    number."""
    if unanswered.num_queries > config.max_failed_queries:
        raise DataError(
            f"{unanswered.message()}\nall answers are kept: run the same command to ask only for "
            "these again, or go on without them: search.max_failed_queries="
            f"{unanswered.num_queries}"
        )
    if unanswered.num_queries:
        print(unanswered.message(), file=sys.stderr, flush=True)


def _write(
    answers: Iterable[tuple[SearchSource, Cursor]],
    names: Sequence[str],
    asked: Sequence[int],
    paths: DatasetPaths,
) -> dict[str, int]:
    """Write the searched table from the cursor files, one batch at a time; returns the counts."""
    counts = {"answers": 0, "unusable_urls": 0}
    rows: list[dict[str, object]] = []
    with table_writer(paths.table("searched"), CANDIDATES) as writer:
        for source, cursor in answers:
            for query_id in asked:
                answer = cursor.read(names[query_id]) if names[query_id] in cursor else []
                for candidate in answer:
                    row = _row(candidate, source.name, query_id)
                    counts["answers" if row else "unusable_urls"] += 1
                    rows += [row] if row else []
                if len(rows) >= ROWS_PER_BATCH:
                    writer.write_table(pa.Table.from_pylist(rows, CANDIDATES))
                    rows = []
        writer.write_table(pa.Table.from_pylist(rows, CANDIDATES))
    return counts


def _row(candidate: Candidate, source: str, query_id: int) -> dict[str, object] | None:
    """The table row of a candidate; None if its URL is no address ("http://[x") or its text is not
    UTF-8."""
    try:
        uid = make_uid(candidate.url, candidate.caption)
    except ValueError:
        return None
    fields = {name: getattr(candidate, name) for name in Candidate.__dataclass_fields__}
    return fields | {"uid": uid, "source": source, "query_ids": [query_id]}


def _given_up(source: SearchSource, in_a_row: int, error: SourceError, cursor: Cursor) -> str:
    stopped = isinstance(error, SourceStopped)
    how = "is not asked any more" if stopped else f"failed for {_queries(in_a_row)} in a row"
    return (
        f"{source.address} ({source.name}) {how}: {error}; "
        f"{len(cursor)} answered queries are kept in {cursor.path}"
    )


def _queries(count: int) -> str:
    return "1 query" if count == 1 else f"{count:,} queries"
