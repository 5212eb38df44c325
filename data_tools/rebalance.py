"""The rebalance stage: balance again, by what survived crawl and curation.

Links rot unevenly: one query keeps nine tenths of its pairs, another one tenth. The first balancing
assumed one rate for all queries; here each query has its own,

    s_e = sum of 1/P(x) over pairs of e that survived / same sum over pairs of e that were kept
    p_e = min(1, t / (s_e * count_e))          P'(x) = 1 - prod over e in x of (1 - p_e)

and a pair stays iff hash(seed, uid) < P'(x). The weights 1/P undo the first balancing, whose
survivors are no uniform sample of the query's pairs: s_e * count_e estimates how many pairs of e
would have survived if all had been crawled. So the result is, among the pairs that were crawled,
what one balancing of all surviving pairs would keep; the two are equal where the first balancing
kept everything. Counting the survivors themselves would flatten the head twice: a query keeps more
than t pairs wherever it occurs together with rarer ones.

A pair that was merged into another one with the same picture counts as survived for those queries
that the sample has from it alone: a sample counts once for each query of all its pairs.

The hash is that of the first balancing. So every pair that stays was kept there, and a run with a
better balance.expected_survival crawls only the pairs that are missing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_tools.balance import (
    chosen_max_per_query,
    count_per_query,
    id_batches,
    keep_probabilities,
    missed_per_query,
    unit_hashes,
)
from data_tools.config import DatasetJob
from data_tools.tables.schema import (
    BALANCED,
    CURATED,
    DROPPED,
    FATES,
    DataError,
    DatasetPaths,
    table_writer,
)
from data_tools.tables.scratch import files_pattern, scratch_database
from data_tools.tables.stream import ROWS_PER_BATCH
from data_tools.work.progress import StageProgress

# tables/survival.parquet: how each query fared.
SURVIVAL = pa.schema(
    [
        ("query_id", pa.int32()),
        ("candidates", pa.int64()),
        ("kept", pa.int64()),
        ("curated", pa.int64()),
        ("balanced", pa.int64()),
        ("survival", pa.float32()),
    ]
)
_KEPT = """
    SELECT k.query_ids, k.keep_probability, c.uid IS NOT NULL AS survived,
           CASE WHEN c.uid IS NOT NULL THEN k.query_ids ELSE coalesce(u.query_ids, []) END AS alive
    FROM read_parquet($kept) k LEFT JOIN (SELECT uid FROM read_parquet($curated)) c USING (uid)
    LEFT JOIN (SELECT uid, query_ids FROM read_parquet($united)) u USING (uid)
    ORDER BY uid
"""
_CURATED = f"""
    SELECT {", ".join(f"c.{name}" for name in CURATED.names)}, k.keep_probability
    FROM read_parquet($curated) c
    JOIN (SELECT uid, keep_probability FROM read_parquet($kept)) k USING (uid)
    ORDER BY c.uid
"""


@dataclass
class Survival:
    """Arrays with an entry per query: pairs that the first balancing kept, samples that crawl and
    curation left of them, and for both the sums of 1/P."""

    kept: np.ndarray
    curated: np.ndarray
    weight_kept: np.ndarray
    weight_curated: np.ndarray
    num_kept: int = 0
    num_curated: int = 0

    @classmethod
    def empty(cls, num_queries: int) -> Survival:
        def zeros(kind: type) -> np.ndarray:
            return np.zeros(num_queries, kind)

        return cls(zeros(np.int64), zeros(np.int64), zeros(np.float64), zeros(np.float64))

    def add(self, kept: pa.Array, alive: pa.Array, probability: np.ndarray) -> None:
        """Count a batch of pairs: `kept` has the query ids of each, `alive` those of them that are
        in the curated table, `probability` its P."""
        size = len(self.kept)
        for ids, counts, sums in (
            (kept, self.kept, self.weight_kept),
            (alive, self.curated, self.weight_curated),
        ):
            queries = ids.flatten().to_numpy()
            weights = np.repeat(1.0 / probability, ids.value_lengths().to_numpy())
            counts += np.bincount(queries, minlength=size)
            sums += np.bincount(queries, weights, minlength=size)

    def rates(self) -> np.ndarray:
        """Return s_e of every query; 0 for a query without a kept pair."""
        kept = np.where(self.weight_kept > 0, self.weight_kept, 1.0)
        return self.weight_curated / kept

    def overall(self) -> float:
        return self.num_curated / max(1, self.num_kept)


def run(job: DatasetJob, paths: DatasetPaths) -> dict[str, int]:
    """Write the balanced table, the survival table and the fates of the dropped pairs.

    DataError when nothing is left, or when a curated pair is not in the kept table."""
    t = chosen_max_per_query(job.balance, paths)
    counts = count_per_query(id_batches([paths.table("candidates")]))
    tables = {name: _existing(paths.table(name)) for name in ("kept", "curated", "united")}
    with scratch_database(paths.root / "tables" / ".rebalance.tmp") as database:
        survival = measure(database.sql(_KEPT, params=tables), len(counts))
        missed = missed_per_query(counts * survival.rates(), t)
        rows = database.sql(_CURATED, params={n: tables[n] for n in ("kept", "curated")})
        balanced = _write_balanced(rows, paths, missed, job.balance.seed, survival)
    _write_survival(paths, counts, survival, balanced)
    print(summary(survival), file=sys.stderr, flush=True)
    dropped = survival.num_curated - balanced.num_rows
    return {
        "kept": survival.num_kept,
        "curated": survival.num_curated,
        "survival_percent": round(100 * survival.overall()),
        "dropped": dropped,
        "balanced": balanced.num_rows,
    }


def _existing(table: Path) -> str:
    if not table.exists():
        raise DataError(f"{table} does not exist: delete tables/done/curate.json, and run again")
    return files_pattern(table)


def measure(kept: duckdb.DuckDBPyRelation, num_queries: int) -> Survival:
    survival = Survival.empty(num_queries)
    for batch in kept.to_arrow_reader(ROWS_PER_BATCH):
        probability = batch.column("keep_probability").to_numpy().astype(np.float64)
        survival.add(batch.column("query_ids"), batch.column("alive"), probability)
        survival.num_kept += batch.num_rows
        survival.num_curated += pc.sum(batch.column("survived")).as_py()
    return survival


@dataclass
class _Balanced:
    per_query: np.ndarray
    num_rows: int = 0


def _write_balanced(
    curated: duckdb.DuckDBPyRelation,
    paths: DatasetPaths,
    missed: np.ndarray,
    seed: int,
    survival: Survival,
) -> _Balanced:
    balanced, num_read = _Balanced(np.zeros(len(missed), np.int64)), 0
    with ExitStack() as stack:
        rows_writer = stack.enter_context(table_writer(paths.table("balanced"), BALANCED))
        fate_writer = stack.enter_context(table_writer(paths.fates("rebalance"), FATES))
        progress = stack.enter_context(StageProgress("rebalance", survival.num_curated))
        for batch, kept, probability in _decided(curated, missed, seed):
            rows_writer.write_batch(batch.select(BALANCED.names).filter(pa.array(kept)))
            dropped = batch.column("uid").filter(pa.array(~kept))
            fate_writer.write_batch(_fates(dropped, probability[~kept]))
            ids = batch.column("query_ids").filter(pa.array(kept)).flatten().to_numpy()
            balanced.per_query += np.bincount(ids, minlength=len(missed))
            balanced.num_rows += int(kept.sum())
            num_read += batch.num_rows
            progress.advance(batch.num_rows)
        _refuse(paths, num_read, survival.num_curated, balanced.num_rows)
    return balanced


def _decided(
    curated: duckdb.DuckDBPyRelation, missed: np.ndarray, seed: int
) -> Iterator[tuple[pa.RecordBatch, np.ndarray, np.ndarray]]:
    """Yield batches with their final keep_probability, a mask of the rows that stay, and P' of
    each.

    A pair stays if both balancings keep it. Both compare with the same hash, so the probability
    that both keep it is the smaller of the two.
    """
    for batch in curated.to_arrow_reader(ROWS_PER_BATCH):
        probability = keep_probabilities(batch.column("query_ids"), missed)
        first = batch.column("keep_probability").to_numpy()
        final = np.minimum(first, probability.astype(np.float32))
        position = batch.schema.get_field_index("keep_probability")
        batch = batch.set_column(position, "keep_probability", pa.array(final))
        draws = unit_hashes(batch.column("uid").to_pylist(), seed)
        yield batch, draws < probability, probability


def _refuse(paths: DatasetPaths, num_read: int, num_survived: int, num_balanced: int) -> None:
    curated = pq.ParquetFile(paths.table("curated")).metadata.num_rows
    if not num_read == num_survived == curated:
        raise DataError(
            f"{paths.table('curated')} has {curated} rows, {num_read} of them are among the kept "
            "pairs: one of the two was changed. Run python -m data_tools.build --stage curate again"
        )
    if num_balanced == 0:
        raise DataError(
            f"balancing left none of {curated} pairs: raise balance.max_per_query or "
            "balance.target_pairs"
        )


def _fates(uids: pa.Array, probability: np.ndarray) -> pa.RecordBatch:
    columns = {
        "uid": uids,
        "status": [f"{DROPPED}:rebalance"] * len(uids),
        "http_status": [None] * len(uids),
        "detail": [f"keep probability {p:.6g}" for p in probability],
    }
    return pa.RecordBatch.from_pydict(columns, FATES)


def _write_survival(
    paths: DatasetPaths, counts: np.ndarray, survival: Survival, balanced: _Balanced
) -> None:
    columns = {
        "query_id": np.arange(len(counts), dtype=np.int32),
        "candidates": counts,
        "kept": survival.kept,
        "curated": survival.curated,
        "balanced": balanced.per_query,
        "survival": survival.rates().astype(np.float32),
    }
    with table_writer(paths.root / "tables" / "survival.parquet", SURVIVAL) as writer:
        writer.write_batch(pa.RecordBatch.from_pydict(columns, SURVIVAL))


def summary(survival: Survival) -> str:
    """Return the measured rates, and the setting that follows from them."""
    overall = survival.overall()
    rates = survival.rates()[survival.kept > 0]
    spread = ""
    if len(rates):
        low, middle, high = np.quantile(rates, [0.1, 0.5, 0.9])
        spread = (
            f" (10th, 50th and 90th percentile over queries: {low:.0%}, {middle:.0%}, {high:.0%})"
        )
    # rounded down, but not to 0: too low a rate only crawls more, too high a rate leaves gaps
    advice = max(0.001, int(1000 * overall) / 1000)
    return (
        f"  {overall:.1%} of the kept pairs survived{spread}; with balance.expected_survival="
        f"{advice:g} the next data set of these queries makes up for the loss"
    )
