"""The numbers of the data set's card, counted from the ledger and the tables of the stages."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field

import duckdb
import numpy as np
import pyarrow.parquet as pq

from data_tools.manifest import Manifest
from data_tools.schema import PACKED, DatasetPaths

TOP_ROWS = 20


@dataclass(frozen=True)
class Sample:
    """A packed pair as a reader of the shards finds it; `source` is its {uid}.json."""

    image: bytes
    caption: str
    source: dict


@dataclass
class Facts:
    num_queries: int = 0
    fates: list[tuple[str, int]] = field(default_factory=list)
    found_per_query: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """int64 (num_queries,): candidates of each query."""
    packed_per_query: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    top_queries: list[tuple[str, int, int]] = field(default_factory=list)
    """Query, candidates, packed; the most found first."""
    caption_words: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """int64 (words + 1,): packed captions of so many words, the last entry those of more."""
    licenses: list[tuple[str, str, int]] = field(default_factory=list)
    """Licence and its address as stated by the source, packed."""
    sites: list[tuple[str, int, int, int]] = field(default_factory=list)
    """Host, candidates, failed or rejected, packed; the most packed first."""
    num_sites: int = 0


MAX_CAPTION_WORDS = 40


def collect_facts(paths: DatasetPaths) -> Facts:
    """Needs the ledger. Aggregates in DuckDB; what comes back has a row a query at most."""
    with duckdb.connect() as database:
        for name in ("queries", "kept", "curated"):
            _view(database, name, str(paths.table(name)))
        _view(database, "ledger", str(paths.ledger))
        facts = Facts(fates=_rows(database, _FATES))
        _count_queries(database, facts)
        facts.caption_words = _caption_words(database)
        facts.licenses = _rows(database, _LICENSES)
        facts.sites = _rows(database, _SITES)
        facts.num_sites = _rows(database, f"SELECT count(DISTINCT {_HOST}) FROM ledger")[0][0]
    return facts


_HOST = "regexp_extract(url, '^[a-zA-Z]+://([^/?#]*)', 1)"
_FATES = "SELECT status, count(*) AS n FROM ledger GROUP BY status ORDER BY n DESC, status"
_PER_QUERY = f"""
    SELECT q.query_id, any_value(q.query),
           count(l.uid), count(l.uid) FILTER (l.status = '{PACKED}')
    FROM queries q LEFT JOIN
        (SELECT uid, status, unnest(query_ids) AS query_id FROM ledger) l USING (query_id)
    GROUP BY q.query_id ORDER BY q.query_id
"""
_WORDS = f"""
    SELECT least(len(string_split(caption, ' ')), {MAX_CAPTION_WORDS + 1}), count(*)
    FROM curated GROUP BY 1
"""
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


def _view(database: duckdb.DuckDBPyConnection, name: str, path: str) -> None:
    # a view can't hold a parameter, so the path stands in the statement
    quoted = path.replace("'", "''")
    database.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet('{quoted}')")


def _rows(database: duckdb.DuckDBPyConnection, query: str) -> list:
    return database.execute(query).fetchall()


def _count_queries(database: duckdb.DuckDBPyConnection, facts: Facts) -> None:
    rows = _rows(database, _PER_QUERY)
    facts.num_queries = len(rows)
    facts.found_per_query = np.array([row[2] for row in rows], np.int64)
    facts.packed_per_query = np.array([row[3] for row in rows], np.int64)
    most = sorted(rows, key=lambda row: (-row[2], row[0]))[:TOP_ROWS]
    facts.top_queries = [(row[1], row[2], row[3]) for row in most]


def _caption_words(database: duckdb.DuckDBPyConnection) -> np.ndarray:
    histogram = np.zeros(MAX_CAPTION_WORDS + 2, np.int64)
    for words, count in _rows(database, _WORDS):
        histogram[words] = count
    return histogram


def first_samples(manifest: Manifest, wanted: int) -> list[Sample]:
    """The first samples of the data set. Their order is random, so they are a fair draw."""
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
