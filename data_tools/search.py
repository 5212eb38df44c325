"""Stage 2: queries become candidates, from search servers and from pools of (url, caption).

A search server is asked once for each query; what it answered is kept in a cursor file, so that a
killed run goes on where it was. The table depends on the answers alone, not on their timing.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing

import pyarrow as pa
import pyarrow.compute as pc

from data_tools.config import DatasetJob, SourcesConfig
from data_tools.match import QueryMatcher
from data_tools.progress import StageProgress
from data_tools.schema import (
    CANDIDATES,
    FATES,
    FOUND,
    MATCHED,
    QUERIES,
    DataError,
    DatasetPaths,
    make_uid,
    read_table,
    write_table,
)
from data_tools.sources.base import Candidate, SearchSource, SourceError
from data_tools.sources.commons import CommonsSource
from data_tools.sources.cursor import Cursor
from data_tools.sources.pool import Pool


def run(job: DatasetJob, paths: DatasetPaths) -> dict[str, int]:
    """Ask every enabled source, write the candidates table and its fates ("found", "matched").

    Raises DataError when a server is down (what was found stays in the cursor) and when nothing
    at all was found.
    """
    queries = read_table(paths.table("queries"), QUERIES)
    names = queries["query"].to_pylist()
    merged = CandidateRows()
    counts = {"queries": len(names)}
    failures: dict[str, str] = {}
    for source in search_sources(job.sources):
        with Cursor(paths.search_cursor, source, job.sources.limit_per_query) as cursor:
            resumed = sum(name in cursor.answers for name in names)
            try:
                failed = ask(source, names, cursor, job.sources)
            finally:
                source.close()
            for query_id, name in enumerate(names):
                for candidate in cursor.answers.get(name, []):
                    merged.add(candidate, source.name, [query_id], FOUND)
        failures.update(failed)
        counts["resumed"] = counts.get("resumed", 0) + resumed
        counts["failed_queries"] = counts.get("failed_queries", 0) + len(failed)
        for name, count in source.counts().items():
            counts[name] = counts.get(name, 0) + count
    if job.sources.pool.enabled:
        counts |= _add_pool(Pool(job.sources.pool), queries["folded"].to_pylist(), merged)
    if not merged.rows:
        raise DataError(_nothing_found(job, failures))
    if failures:
        _tell(failures)
    table = merged.table()
    write_table(table, paths.table("candidates"), CANDIDATES)
    write_table(merged.fates(), paths.fates("search"), FATES)
    zero = len(names) - len(pc.unique(pc.list_flatten(table["query_ids"])))
    return counts | {
        "unusable_urls": merged.num_unusable,
        "queries_without_candidates": zero,
        "candidates": table.num_rows,
    }


def search_sources(config: SourcesConfig) -> list[SearchSource]:
    """The enabled servers, in the order in which their candidates are merged."""
    return [CommonsSource(config.commons, config)] if config.commons.enabled else []


def ask(
    source: SearchSource, queries: list[str], cursor: Cursor, config: SourcesConfig
) -> dict[str, str]:
    """Ask for every query that the cursor lacks, and put the answers there.

    Returns why queries failed, by query. Raises DataError after `give_up_after` failures without
    an answer in between.
    """
    todo = (query for query in queries if query not in cursor.answers)
    failures: dict[str, str] = {}
    in_a_row = 0
    with StageProgress("search", total=len(queries)) as progress:
        progress.update(sum(query in cursor.answers for query in queries))
        # closing: an exception must stop the threads now, not when its traceback is forgotten
        with closing(_answered(source, todo, config.limit_per_query)) as answered:
            for query, future in answered:
                try:
                    cursor.add(query, future.result())
                except SourceError as error:
                    failures[query] = str(error)
                    in_a_row += 1
                    if in_a_row >= config.give_up_after:
                        told = _server_down(source, in_a_row, str(error), cursor)
                        raise DataError(told) from error
                else:
                    in_a_row = 0
                    progress.advance()
    return failures


def _answered(
    source: SearchSource, queries: Iterator[str], limit: int
) -> Generator[tuple[str, Future[list[Candidate]]], None, None]:
    """Run the searches in `source.concurrency` threads; give each as it is done.

    No more are handed to the threads than they can work on, so that stopping costs nothing.
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


class CandidateRows:
    """Candidates merged by uid: the first that came gives the fields, all give their query ids."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, object]] = {}
        self.query_ids: dict[str, set[int]] = {}
        self.statuses: dict[str, str] = {}
        self.num_unusable = 0

    def add(self, candidate: Candidate, source: str, query_ids: Iterable[int], status: str) -> None:
        try:
            uid = make_uid(candidate.url, candidate.caption)
        except ValueError:  # no address ("http://[x"), or text that is no UTF-8
            self.num_unusable += 1
            return
        if uid not in self.rows:
            row = {name: getattr(candidate, name) for name in Candidate.__dataclass_fields__}
            self.rows[uid] = row | {"uid": uid, "source": source}
            self.query_ids[uid] = set()
            self.statuses[uid] = status
        self.query_ids[uid].update(query_ids)

    def table(self) -> pa.Table:
        rows = [row | {"query_ids": sorted(self.query_ids[uid])} for uid, row in self.rows.items()]
        return pa.Table.from_pylist(rows, CANDIDATES)

    def fates(self) -> pa.Table:
        rows = [{"uid": uid, "status": status} for uid, status in self.statuses.items()]
        return pa.Table.from_pylist(rows, FATES)


def _add_pool(pool: Pool, folded_queries: list[str], merged: CandidateRows) -> dict[str, int]:
    matcher = QueryMatcher(folded_queries)
    num_unmatched = 0
    with StageProgress("pool") as progress:
        for batch in pool.batches():
            for candidate in batch:
                query_ids = matcher.match(candidate.caption)
                if query_ids:
                    merged.add(candidate, "pool", query_ids, MATCHED)
                else:
                    num_unmatched += 1
            progress.advance(len(batch))
    return pool.counts() | {"pool_unmatched": num_unmatched}


def _server_down(source: SearchSource, in_a_row: int, last: str, cursor: Cursor) -> str:
    return (
        f"{source.address} ({source.name}) failed for {in_a_row} queries in a row, last with: "
        f"{last}\n{len(cursor.answers)} answered queries are kept in {cursor.path}: run the same "
        "command when the server answers again, and only the others are asked"
    )


def _nothing_found(job: DatasetJob, failures: dict[str, str]) -> str:
    if failures:
        query, reason = next(iter(failures.items()))
        return (
            f"no candidate was found: {len(failures)} queries failed, the first ({query!r}) with: "
            f"{reason}\nrun the same command when the server answers again"
        )
    asked = "search server" if job.sources.commons.enabled else "pool"
    return (
        f"no candidate was found: the {asked} has nothing for any query of {job.queries.path}; "
        "use more common words, or add a source (source=[commons,pool])"
    )


def _tell(failures: dict[str, str], shown: int = 5) -> None:
    lines = [f"{query!r}: {reason}" for query, reason in list(failures.items())[:shown]]
    more = [f"(+{len(failures) - shown} more)"] if len(failures) > shown else []
    text = "\n  ".join([f"{len(failures)} queries got no answer:", *lines, *more])
    print(text, file=sys.stderr)
