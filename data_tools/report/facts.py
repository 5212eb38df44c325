"""The numbers of the report, counted from the ledger and the tables of the stages."""

from __future__ import annotations

import heapq
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import xxhash

from data_tools.config import ReportConfig
from data_tools.dataset.manifest import Manifest
from data_tools.report.captions import CaptionFacts, caption_facts
from data_tools.report.coverage import Coverage, class_name_files, coverage
from data_tools.tables.schema import CUT_FATES, PACKED, DatasetPaths, query_source
from data_tools.tables.scratch import files_pattern, scratch_database, sql_text

TOP_ROWS = 20
MAX_CAPTION_WORDS = 40
MAX_CONCEPTS = 20


@dataclass(frozen=True)
class Sample:
    """A packed pair as it is read from a shard; `source` is its {uid}.json."""

    image: bytes
    caption: str
    source: dict


@dataclass
class QueryFacts:
    found: np.ndarray
    """int64 (num_queries,): candidates of each query."""
    packed: np.ndarray
    """int64 (num_queries,): packed pairs of each query."""
    top: list[tuple[str, int, int]]
    """Query, candidates, packed pairs; the query with most candidates first."""
    without_pairs: list[str]
    """Up to TOP_ROWS queries that found nothing, drawn by a hash of the query."""
    by_source: list[tuple[str, int, int, int, int]]
    """Source, queries, queries without a candidate, queries with more than t candidates, candidates
    (a pair counts for each of its queries); the source with most queries first."""

    @property
    def num_queries(self) -> int:
        return len(self.found)


@dataclass
class Facts:
    fates: list[tuple[str, int]]
    """Status in the ledger, candidates with it; the most frequent first."""
    queries: QueryFacts
    max_per_query: int
    caption_words: np.ndarray
    """int64 (MAX_CAPTION_WORDS + 2,): packed captions by number of words, the last entry those with
    more than MAX_CAPTION_WORDS."""
    concepts: np.ndarray
    """int64 (MAX_CONCEPTS + 2,): packed pairs by number of queries, the last entry those with more
    than MAX_CONCEPTS."""
    mean_concepts: float
    captions: CaptionFacts
    licenses: list[tuple[str, str, int]] = field(default_factory=list)
    """Licence and its address as stated by the source, packed pairs; the most packed first."""
    sites: list[tuple[str, int, int, int]] = field(default_factory=list)
    """Host, candidates, failed or rejected pairs, packed pairs; the most packed first."""
    num_sites: int = 0
    cut: list[tuple[str, str, int, str]] = field(default_factory=list)
    """Host, fate, addresses left out because of the host, why in words; most addresses first."""
    coverage: list[Coverage] = field(default_factory=list)

    def total(self, *beginnings: str) -> int:
        """Return the number of pairs whose fate begins with one of these; of all pairs without
        any."""
        return sum(n for fate, n in self.fates if fate.startswith(beginnings or ("",)))


def collect_facts(paths: DatasetPaths, max_per_query: int, config: ReportConfig) -> Facts:
    """Count everything in DuckDB, on disk where memory does not suffice; results have a row per
    query at most. The ledger must have been written."""
    files = class_name_files(config.class_names, paths.root / "eval")
    with scratch_database(paths.root / "tables" / ".report.tmp") as database:
        for name in ("queries", "kept", "balanced"):
            _view(database, name, paths.table(name))
        _view(database, "ledger", paths.ledger)
        queries, folded = _query_facts(database, max_per_query)
        concepts, mean = _concepts(database)
        sample = database.execute(_CAPTIONS, {"limit": config.caption_sample}).fetchall()
        return Facts(
            fates=_rows(database, _FATES),
            queries=queries,
            max_per_query=max_per_query,
            caption_words=_histogram(database, _WORDS, MAX_CAPTION_WORDS),
            concepts=concepts,
            mean_concepts=mean,
            captions=caption_facts([caption for (caption,) in sample]),
            licenses=_rows(database, _LICENSES),
            sites=_rows(database, _SITES),
            num_sites=_rows(database, f"SELECT count(DISTINCT {_HOST}) FROM ledger")[0][0],
            cut=_rows(database, _CUT),
            coverage=coverage(files, folded, queries.packed),
        )


_HOST = "regexp_extract(url, '^[a-zA-Z]+://([^/?#]*)', 1)"
_FATES = "SELECT status, count(*) AS n FROM ledger GROUP BY status ORDER BY n DESC, status"
# Captions and queries as they were packed: curation may have changed the ledger's captions, and a
# sample has the queries of all pairs that show its picture.
_PACKED_ROWS = f"""
    FROM balanced JOIN (SELECT uid FROM ledger WHERE status = '{PACKED}') USING (uid)
"""
_PER_QUERY = f"""
    SELECT q.query_id, q.query, q.folded, q.origin, coalesce(l.found, 0), coalesce(p.packed, 0)
    FROM queries q LEFT JOIN (
        SELECT query_id, count(*) AS found
        FROM (SELECT unnest(query_ids) AS query_id FROM ledger) GROUP BY query_id
    ) l USING (query_id) LEFT JOIN (
        SELECT query_id, count(*) AS packed
        FROM (SELECT unnest(query_ids) AS query_id {_PACKED_ROWS}) GROUP BY query_id
    ) p USING (query_id) ORDER BY q.query_id
"""
_WORDS = f"SELECT len(string_split(caption, ' ')), count(*) {_PACKED_ROWS} GROUP BY 1"
_CAPTIONS = f"SELECT caption {_PACKED_ROWS} ORDER BY uid LIMIT $limit"
_CONCEPTS = f"SELECT len(query_ids), count(*) {_PACKED_ROWS} GROUP BY 1"
_LICENSES = f"""
    SELECT coalesce(nullif(k.license, ''), 'not stated') AS license,
           coalesce(k.license_url, '') AS license_url, count(*) AS n
    FROM ledger JOIN kept k USING (uid) WHERE ledger.status = '{PACKED}'
    GROUP BY ALL ORDER BY n DESC, license, license_url
"""
_SITES = f"""
    SELECT {_HOST} AS host, count(*),
           count(*) FILTER (starts_with(status, 'failed') OR starts_with(status, 'rejected')),
           count(*) FILTER (status = '{PACKED}') AS packed
    FROM ledger GROUP BY host ORDER BY packed DESC, host LIMIT {TOP_ROWS}
"""
_CUT = f"""
    SELECT {_HOST} AS host, status, count(DISTINCT url) AS n, max(detail)
    FROM ledger WHERE status IN {CUT_FATES} GROUP BY host, status
    ORDER BY n DESC, host, status LIMIT {TOP_ROWS}
"""


def _view(database: duckdb.DuckDBPyConnection, name: str, path: Path) -> None:
    # a view cannot hold a parameter, so the path is part of the statement
    file = sql_text(files_pattern(path))
    database.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet({file})")


def _rows(database: duckdb.DuckDBPyConnection, query: str) -> list:
    return database.execute(query).fetchall()


def _query_facts(
    database: duckdb.DuckDBPyConnection, max_per_query: int
) -> tuple[QueryFacts, dict[str, int]]:
    """Return the facts, and the id of each folded query."""
    rows = _rows(database, _PER_QUERY)
    by_source: dict[str, list[int]] = {}
    for _, _, _, origin, found, _ in rows:
        counts = by_source.setdefault(query_source(origin), [0, 0, 0, 0])
        for place, value in enumerate((1, found == 0, found > max_per_query, found)):
            counts[place] += value
    most = sorted(rows, key=lambda row: (-row[4], row[0]))[:TOP_ROWS]
    without = [(xxhash.xxh64_intdigest(row[2].encode()), row[1]) for row in rows if row[4] == 0]
    facts = QueryFacts(
        found=np.array([row[4] for row in rows], np.int64),
        packed=np.array([row[5] for row in rows], np.int64),
        top=[(row[1], row[4], row[5]) for row in most],
        without_pairs=[query for _, query in heapq.nsmallest(TOP_ROWS, without)],
        by_source=sorted(
            ((source, n[0], n[1], n[2], n[3]) for source, n in by_source.items()),
            key=lambda row: (-row[1], row[0]),
        ),
    )
    return facts, {row[2]: row[0] for row in rows}


def _concepts(database: duckdb.DuckDBPyConnection) -> tuple[np.ndarray, float]:
    rows = _rows(database, _CONCEPTS)
    pairs = sum(count for _, count in rows)
    mean = sum(number * count for number, count in rows) / pairs if pairs else 0.0
    return _histogram(database, _CONCEPTS, MAX_CONCEPTS), mean


def _histogram(database: duckdb.DuckDBPyConnection, query: str, largest: int) -> np.ndarray:
    """Return counts by value, from rows (value, count); values above `largest` are in the last
    entry."""
    counts = np.zeros(largest + 2, np.int64)
    for value, count in _rows(database, query):
        counts[min(value, largest + 1)] += count
    return counts


def first_samples(manifest: Manifest, wanted: int) -> list[Sample]:
    """Return the first samples of the data set. Their order is random, so they are a random
    sample."""
    samples: list[Sample] = []
    for shard in manifest.shards:
        rows = pq.read_table(manifest.index_path(shard)).slice(0, wanted - len(samples)).to_pylist()
        with manifest.shard_path(shard).open("rb") as file:
            for row in rows:
                image, text, source = (
                    os.pread(file.fileno(), row[f"{part}_size"], row[f"{part}_offset"])
                    for part in ("image", "text", "json")
                )
                samples.append(Sample(image, text.decode(), json.loads(source)))
        if len(samples) == wanted:
            break
    return samples
