"""A unit of work is a pool file, or some row groups of a large one; it becomes one table.

The table is written aside and renamed when it is whole. Its footer records what it was made of: a
later run uses it only if file, queries and settings are still the same.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from data_tools.config import MatchConfig, PoolConfig, fingerprint
from data_tools.ground.aside import written_aside
from data_tools.match.matcher import QueryMatcher
from data_tools.match.pool import (
    Account,
    Batch,
    PoolFile,
    check_loss,
    first_unreadable,
    quoted,
    read_batches,
    reading,
    usable,
    with_uids,
)
from data_tools.tables.schema import CANDIDATES, QUERIES, DataError, read_table

# Raised when the same input gives another table, so that tables of older versions are not used.
# 2: typographic apostrophes, quotes and hyphens, entities and unseen characters (text/fold.py);
# lists of captions, utf-16, JSON Lines in .json.
FORMAT = 2
FINGERPRINT, COUNTS = b"match_fingerprint", b"match_counts"
ROW_GROUP_ROWS = 65_536
# Columns in which values repeat. For the others a dictionary would be built and thrown away.
REPEATING = [
    "page_url",
    "license",
    "license_url",
    "attribution",
    "source",
    "query_ids.list.element",
]


@dataclass(frozen=True)
class Unit:
    """Part `part` of `num_parts` of a pool file."""

    file: PoolFile
    part: int
    num_parts: int

    @property
    def table_name(self) -> str:
        """The file name of the unit's table, which no unit of another file has."""
        stem = PurePosixPath(self.file.name.split("?")[0]).name.split(".")[0][:40]
        digest = xxhash.xxh3_64_hexdigest(self.file.name.encode())
        return f"{stem}-{digest}-{self.part:05d}-of-{self.num_parts:05d}.parquet"


@dataclass(frozen=True)
class MatchSettings:
    """The settings and queries that a unit's table depends on, besides its file."""

    pool: PoolConfig
    match: MatchConfig
    queries: Path
    queries_digest: str

    def fingerprint(self, unit: Unit, rules: int = FORMAT) -> str:
        """Changes with everything that the unit's table depends on. `rules`: FORMAT of the version
        that matched it."""
        pool, match = (
            {name: getattr(config, name) for name in config.__dataclass_fields__}
            for config in (self.pool, self.match)
        )
        for name in ("enabled", "paths", "storage_options"):
            del pool[name]
        # where quotes do not matter, the setting is hashed as it was when it was true by default
        pool["quoted"] = True if self.pool.quoted is None else self.pool.quoted
        if unit.file.kind in (".csv", ".tsv"):
            pool["quoted"] = quoted(unit.file, self.pool)
        kept = {name: match[name] for name in ("case_sensitive", "max_caption_chars")}
        return fingerprint(rules, unit, pool, kept, self.queries_digest)


def plan_units(files: list[PoolFile], unit_bytes: int) -> list[Unit]:
    """Divide the files into units of about `unit_bytes`. Only the sizes decide, so that every task
    of an array makes the same units without opening a file."""
    units = []
    for file in files:
        num_parts = -(-file.size // unit_bytes) if file.kind == ".parquet" else 1
        units += [Unit(file, part, max(num_parts, 1)) for part in range(max(num_parts, 1))]
    return units


def queries_digest(queries: Path, case_sensitive: bool) -> str:
    """32 hex digits over the queries in the form in which they are matched, in their order."""
    digest = xxhash.xxh3_128()
    for chunk in _patterns(queries, case_sensitive).chunks:
        lines = pc.binary_join_element_wise(chunk, "", "\n")
        at = np.frombuffer(lines.buffers()[1], np.int32, len(lines) + 1, lines.offset * 4)
        digest.update(memoryview(lines.buffers()[2])[at[0] : at[-1]])
    return digest.hexdigest()


def account_of(table: Path, wanted_fingerprint: str) -> Account | None:
    """The account in a unit's table; None if the table is absent or has another fingerprint."""
    try:
        stored = pq.read_metadata(table).metadata or {}
    except (OSError, pa.ArrowException):
        return None
    if stored.get(FINGERPRINT) != wanted_fingerprint.encode():
        return None
    return Account.from_json(json.loads(stored[COUNTS]))


def of_earlier_rules(unit: Unit, settings: MatchSettings, folder: Path) -> bool:
    """Whether an earlier version of this code matched the unit, with the same file, queries and
    settings."""
    table = folder / unit.table_name
    return any(account_of(table, settings.fingerprint(unit, rules)) for rules in range(1, FORMAT))


def match_or_problem(unit: Unit, settings: MatchSettings, folder: Path) -> Account | str:
    """As `match_unit`; a file that cannot be read is returned as its message, so that the other
    files are still matched, and the problems of all are told."""
    try:
        return match_unit(unit, settings, folder)
    except DataError as error:
        return str(error)


def match_unit(unit: Unit, settings: MatchSettings, folder: Path) -> Account:
    """Match the unit's captions and write its table (CANDIDATES) into `folder`. Returns what was
    read. DataError names a file that cannot be read, or of which most rows are lost."""
    matcher = _matcher(settings.queries, settings.queries_digest, settings.match.case_sensitive)
    account = Account()
    with (
        written_aside(folder / unit.table_name) as aside,
        pq.ParquetWriter(aside, CANDIDATES, compression="zstd", use_dictionary=REPEATING) as out,
    ):
        waiting: list[pa.RecordBatch] = []
        for batch in _batches(unit, settings.pool):
            waiting.append(_candidates(batch, settings, matcher, account))
            if sum(some.num_rows for some in waiting) >= ROW_GROUP_ROWS:
                out.write_table(pa.Table.from_batches(waiting), ROW_GROUP_ROWS * 2)
                waiting = []
        out.write_table(pa.Table.from_batches(waiting, CANDIDATES))
        if account.counts.unreadable:
            with reading(unit.file):
                account.first_bad = first_unreadable(
                    unit.file, settings.pool, unit.part, unit.num_parts
                )
        check_loss(unit.file, account)
        out.add_key_value_metadata(
            {FINGERPRINT: settings.fingerprint(unit), COUNTS: json.dumps(account.as_json())}
        )
    return account


def _batches(unit: Unit, pool: PoolConfig) -> Iterator[Batch]:
    with reading(unit.file):  # converts errors of reading, not those of the code that uses the rows
        yield from read_batches(unit.file, pool, unit.part, unit.num_parts)


def _candidates(
    batch: Batch, settings: MatchSettings, matcher: QueryMatcher, account: Account
) -> pa.RecordBatch:
    account.note(batch)
    counts = account.counts
    if not batch.columns:
        return pa.RecordBatch.from_pylist([], CANDIDATES)
    rows = usable(batch.columns, settings.match.max_caption_chars)
    counts.add(rows.counts)
    account.largest_cell = max(account.largest_cell, rows.largest_cell)
    matches = matcher.match_many(rows.columns["caption"])
    firsts = np.flatnonzero(np.diff(matches.row, prepend=-1))
    counts.unmatched += len(rows.columns["caption"]) - len(firsts)
    matched_rows = pa.array(matches.row[firsts])
    columns = {name: column.take(matched_rows) for name, column in rows.columns.items()}
    offsets = np.append(firsts, len(matches.row)).astype(np.int32)
    columns["query_ids"] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(matches.query))
    matched = with_uids(columns)
    counts.add(matched.counts)
    counts.matched += len(matched.columns["uid"])
    return _as_candidates(matched.columns, settings.pool.license or "")


def _as_candidates(columns: dict[str, pa.Array], license: str) -> pa.RecordBatch:
    count = len(columns["uid"])
    constant = {"license": license, "source": "pool"}
    if "license" in columns:  # LAION writes "?" for an unknown one
        unknown = pc.is_in(columns["license"], pa.array(["", "?"]))
        columns["license"] = pc.if_else(unknown, license, columns["license"])
    for field in CANDIDATES:
        if field.name not in columns:
            text = constant.get(field.name, "") if field.type == pa.string() else None
            columns[field.name] = pa.repeat(pa.scalar(text, field.type), count)
    return pa.RecordBatch.from_arrays(
        [columns[name] for name in CANDIDATES.names], schema=CANDIDATES
    )


@functools.lru_cache(maxsize=1)
def _matcher(queries: Path, digest: str, case_sensitive: bool) -> QueryMatcher:
    """The matcher, built once per process (2.3 s at 500,000 queries). `digest` is part of the
    cache's key, so that another table of queries gives another matcher."""
    patterns = _patterns(queries, case_sensitive).combine_chunks()
    return QueryMatcher(patterns, case_sensitive)


def _patterns(queries: Path, case_sensitive: bool) -> pa.ChunkedArray:
    return read_table(queries, QUERIES)["query" if case_sensitive else "folded"]
