"""Stage 3: search servers are asked for the queries.

A search server is asked once for each query; what it answered is kept in a cursor file, so that a
killed run goes on where it was. The table depends on the answers alone, not on their timing.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing

import pyarrow as pa

from data_tools.config import DatasetJob, SearchConfig, SourcesConfig
from data_tools.progress import StageProgress
from data_tools.schema import (
    CANDIDATES,
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


def run(job: DatasetJob, paths: DatasetPaths) -> dict[str, int]:
    """Ask every enabled source and write the searched table: one row per answer of a query, in the
    order of sources, queries, answers.

    Raises DataError when a server is down (what was found stays in the cursor) and when queries
    failed and nothing at all was found.
    """
    queries = read_table(paths.table("queries"), QUERIES)
    names = queries["query"].to_pylist()
    rows: list[dict[str, object]] = []
    counts = {"queries": len(names), "unusable_urls": 0}
    failures: dict[str, str] = {}
    for source in search_sources(job.sources):
        with Cursor(paths.search_cursor, source, job.search.limit_per_query) as cursor:
            resumed = sum(name in cursor.answers for name in names)
            try:
                failures |= ask(source, names, cursor, job.search)
            finally:
                source.close()
            for query_id, name in enumerate(names):
                for candidate in cursor.answers.get(name, []):
                    row = _row(candidate, source.name, query_id)
                    counts["unusable_urls"] += row is None
                    rows += [row] if row else []
        counts["resumed"] = counts.get("resumed", 0) + resumed
        for name, count in source.counts().items():
            counts[name] = counts.get(name, 0) + count
    if failures:
        if not rows:
            raise DataError(_nothing_found(failures))
        _tell(failures)
    write_table(pa.Table.from_pylist(rows, CANDIDATES), paths.table("searched"), CANDIDATES)
    return counts | {"failed_queries": len(failures), "answers": len(rows)}


def target(job: DatasetJob) -> int:
    """Up to how many pool matches a query is asked for; 0 asks for all."""
    return job.balance.max_per_query if job.search.deficit_only else 0


def _row(candidate: Candidate, source: str, query_id: int) -> dict[str, object] | None:
    """None for no address ("http://[x"), or text that is no UTF-8."""
    try:
        uid = make_uid(candidate.url, candidate.caption)
    except ValueError:
        return None
    fields = {name: getattr(candidate, name) for name in Candidate.__dataclass_fields__}
    return fields | {"uid": uid, "source": source, "query_ids": [query_id]}


def search_sources(config: SourcesConfig) -> list[SearchSource]:
    """The enabled servers, in the order in which their candidates are merged."""
    return [CommonsSource(config.commons, config)] if config.commons.enabled else []


def ask(
    source: SearchSource, queries: list[str], cursor: Cursor, config: SearchConfig
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


def _server_down(source: SearchSource, in_a_row: int, last: str, cursor: Cursor) -> str:
    return (
        f"{source.address} ({source.name}) failed for {in_a_row} queries in a row, last with: "
        f"{last}\n{len(cursor.answers)} answered queries are kept in {cursor.path}: run the same "
        "command when the server answers again, and only the others are asked"
    )


def _nothing_found(failures: dict[str, str]) -> str:
    query, reason = next(iter(failures.items()))
    return (
        f"no candidate was found: {len(failures)} queries failed, the first ({query!r}) with: "
        f"{reason}\nrun the same command when the server answers again"
    )


def _tell(failures: dict[str, str], shown: int = 5) -> None:
    lines = [f"{query!r}: {reason}" for query, reason in list(failures.items())[:shown]]
    more = [f"(+{len(failures) - shown} more)"] if len(failures) > shown else []
    text = "\n  ".join([f"{len(failures)} queries got no answer:", *lines, *more])
    print(text, file=sys.stderr)


if __name__ == "__main__":
    from data_tools.build import main

    sys.exit(main(sys.argv[1:], stage="search"))
