"""The balance stage: flatten the head of the distribution, keep the tail (CLIP, arXiv 2103.00020,
section 2.2; MetaCLIP, arXiv 2309.16671, algorithm 1).

    count_e = candidates that query e found        p_e  = min(1, t / (s * count_e))
    P(x)    = 1 - prod over e in x of (1 - p_e)    keep x iff hash(seed, uid) < P(x)

s is the share of pairs expected to survive crawl and curation. With it, t is the number of pairs
per query in the data set rather than in the crawl. MetaCLIP draws a random number for each (text,
query); here a hash of the uid takes its place. So the decision does not depend on the order of rows
or the number of processes, and selections are nested: a larger t raises P and leaves the hash.

The table of candidates is read in batches: once for the counts, once for the decision, and once
more for each step of the bisection that finds t for balance.target_pairs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from data_tools.config import BalanceConfig, DatasetJob
from data_tools.ground.aside import write_text_aside
from data_tools.tables.schema import (
    CANDIDATES,
    DROPPED,
    FATES,
    KEPT,
    KEPT_STATUS,
    DataError,
    DatasetPaths,
    table_writer,
)
from data_tools.tables.stream import table_batches
from data_tools.work.progress import StageProgress


@dataclass(frozen=True)
class Decision:
    """What the stage decided for the whole table. It is stored in `tables/balance.json`."""

    max_per_query: int
    """t of the formula above."""
    expected_survival: float
    seed: int
    candidates: int
    matches: int
    """Total query-caption matches, summed over queries."""
    capped_queries: int
    """Queries with more than t / s candidates."""
    tail_share: float
    """Share of the matches that belongs to queries with fewer than t / s candidates."""
    expected_kept: float
    expected_kept_sd: float
    """Standard deviation of the number of kept pairs, over seeds."""
    kept: int = 0


def run(job: DatasetJob, paths: DatasetPaths) -> dict[str, int]:
    """Write the kept table, the fates ("kept", "dropped:balance") and balance.json."""
    table = paths.table("candidates")
    counts = count_per_query(id_batches([table]))
    decision = decide(counts, lambda: id_batches([table]), job.balance)
    missed = missed_per_query(counts, decision.max_per_query, decision.expected_survival)
    kept = _write_kept(paths, missed, decision)
    decision = Decision(**{**asdict(decision), "kept": kept})
    _write_decision(decision, paths)
    print(summary(decision, job.balance), file=sys.stderr, flush=True)
    return {
        "candidates": decision.candidates,
        "max_per_query": decision.max_per_query,
        "capped_queries": decision.capped_queries,
        "dropped": decision.candidates - kept,
        "kept": kept,
    }


def decide(
    counts: np.ndarray, batches: Callable[[], Iterable[pa.Array]], config: BalanceConfig
) -> Decision:
    """Choose t as the configuration asks, and compute what it does.

    Each call of `batches` gives the query ids of all candidates, as list arrays.
    """
    s = config.expected_survival
    share, pairs = config.tail_share, config.target_pairs
    if share is not None:
        t = smallest(lambda t: tail_share(counts, t, s) >= share, _largest(counts, s))
    elif pairs is not None:
        t = smallest(
            # rounded, because a sum of floats may miss a whole number by its last digits
            lambda t: round(s * expected_kept(batches(), counts, t, s)[1], 6) >= pairs,
            _largest(counts, s),
        )
    else:
        assert config.max_per_query is not None  # the configuration was refused otherwise
        t = config.max_per_query
    candidates, mean, variance = expected_kept(batches(), counts, t, s)
    return Decision(
        max_per_query=t,
        expected_survival=s,
        seed=config.seed,
        candidates=candidates,
        matches=int(counts.sum()),
        capped_queries=int((s * counts > t).sum()),
        tail_share=tail_share(counts, t, s),
        expected_kept=mean,
        expected_kept_sd=variance**0.5,
    )


def id_batches(tables: Sequence[Path]) -> Iterator[pa.Array]:
    """Yield the column `query_ids` of tables that have the columns of CANDIDATES, as list
    arrays."""
    for table in tables:
        for batch in table_batches(table, CANDIDATES, ["query_ids"]):
            yield batch.column("query_ids")


def count_per_query(batches: Iterable[pa.Array]) -> np.ndarray:
    """Return an int64 array whose entry e is the number of candidates that have query e."""
    counts = np.zeros(0, np.int64)
    for ids in batches:
        more = np.bincount(ids.flatten().to_numpy())
        if len(more) > len(counts):
            counts, more = more, counts
        counts[: len(more)] += more
    return counts


def missed_per_query(counts: np.ndarray, t: float, s: float = 1.0) -> np.ndarray:
    """Return 1 - p_e of every query, float64. `counts` may be estimates, and 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1.0 - np.fmin(1.0, t / (s * counts))


def keep_probabilities(query_ids: pa.Array, missed: np.ndarray) -> np.ndarray:
    """Return P(x) of every candidate of a batch, float64; 0 for one without a query."""
    lengths = query_ids.value_lengths().to_numpy()
    factors = missed[query_ids.flatten().to_numpy()]
    probability = np.zeros(len(lengths))
    if len(factors):
        # reduceat gives an empty slice the value of its first element: leave such rows out
        has_query = lengths > 0
        starts = (np.cumsum(lengths) - lengths)[has_query]
        probability[has_query] = 1.0 - np.multiply.reduceat(factors, starts)
    return probability


def unit_hashes(uids: Sequence[str], seed: int) -> np.ndarray:
    """Return xxh64(seed, "balance/" + uid) / 2^64 of each uid, as float64 in [0, 1).

    The prefix makes the decision independent of other hashes of the uid: if the kept pairs were
    later sorted by the same hash, those with a small P would all come first. Only the upper 53 of
    the 64 bits are used: dividing all of them can round up to 1.0, and a candidate with P = 1 would
    be lost.
    """
    digests = (xxhash.xxh64_intdigest(f"balance/{uid}".encode(), seed % 2**64) for uid in uids)
    return (np.fromiter(digests, np.uint64, len(uids)) >> np.uint64(11)) * 2.0**-53


def expected_kept(
    batches: Iterable[pa.Array], counts: np.ndarray, t: int, s: float = 1.0
) -> tuple[int, float, float]:
    """Return the number of candidates, and mean and variance of the number of them kept at `t`."""
    missed = missed_per_query(counts, t, s)
    candidates, mean, variance = 0, 0.0, 0.0
    for ids in batches:
        probability = keep_probabilities(ids, missed)
        candidates += len(ids)
        mean += float(probability.sum())
        variance += float((probability * (1 - probability)).sum())
    return candidates, mean, variance


def tail_share(counts: np.ndarray, t: int, s: float = 1.0) -> float:
    """Return the share of all matches that belongs to queries with fewer than t / s candidates.
    MetaCLIP 2 (arXiv 2507.22062) finds the t of one pool by the tail share of another."""
    total = counts.sum()
    return float(counts[s * counts < t].sum() / total) if total else 0.0


def smallest(enough: Callable[[int], bool], largest: int) -> int:
    """Find the smallest t from 1 to `largest` with enough(t), by bisection; `largest` if there is
    none.

    `enough` must be monotonic: true for every t above one for which it is true.
    """
    low, high = 0, largest
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _largest(counts: np.ndarray, s: float) -> int:
    """Return a t that caps no query: more than s times the largest count."""
    return int(s * counts.max(initial=0)) + 1


def summary(decision: Decision, config: BalanceConfig) -> str:
    """Return the decision in two lines, and a third line if the target is out of reach."""
    s = decision.expected_survival
    survive = f", of which {s * decision.expected_kept:,.0f} should survive" if s < 1 else ""
    lines = [
        f"  t = {decision.max_per_query:,}: {decision.capped_queries:,} queries are capped; those "
        f"below it have {decision.tail_share:.1%} of {decision.matches:,} matches",
        f"  kept {decision.kept:,} pairs, expected {decision.expected_kept:,.0f} "
        f"+- {decision.expected_kept_sd:,.0f}{survive}",
    ]
    if config.target_pairs and round(s * decision.expected_kept, 6) < config.target_pairs:
        lines.append(
            f"  balance.target_pairs = {config.target_pairs:,} is more than the candidates give: "
            "every pair is kept; add sources or queries for more"
        )
    return "\n".join(lines)


def chosen_max_per_query(config: BalanceConfig, paths: DatasetPaths) -> int:
    """Return t: the one of the configuration, or the one that the balance stage chose. DataError if
    the stage has not run."""
    if config.max_per_query is not None:
        return config.max_per_query
    try:
        return int(json.loads(decision_path(paths).read_text())["max_per_query"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{decision_path(paths)} does not say which t was chosen ({error!r}): run python -m "
            "data_tools.build --stage balance first"
        ) from error


def _write_kept(paths: DatasetPaths, missed: np.ndarray, decision: Decision) -> int:
    num_kept = 0
    with ExitStack() as stack:
        rows_writer = stack.enter_context(table_writer(paths.table("kept"), KEPT))
        fate_writer = stack.enter_context(table_writer(paths.fates("balance"), FATES))
        progress = stack.enter_context(StageProgress("balance", total=decision.candidates))
        for batch in table_batches(paths.table("candidates"), CANDIDATES):
            uids = batch.column("uid").to_pylist()
            probability = keep_probabilities(batch.column("query_ids"), missed)
            kept = unit_hashes(uids, decision.seed) < probability
            rows = batch.append_column("keep_probability", pa.array(probability, pa.float32()))
            rows_writer.write_batch(rows.filter(pa.array(kept)))
            fate_writer.write_batch(_fates(uids, kept, probability))
            num_kept += int(kept.sum())
            progress.advance(len(uids))
    return num_kept


def _fates(uids: list[str], kept: np.ndarray, probability: np.ndarray) -> pa.RecordBatch:
    columns = {
        "uid": uids,
        "status": np.where(kept, KEPT_STATUS, f"{DROPPED}:balance").tolist(),
        "http_status": [None] * len(uids),
        "detail": [f"keep probability {p:.6g}" for p in probability],
    }
    return pa.RecordBatch.from_pydict(columns, FATES)


def decision_path(paths: DatasetPaths) -> Path:
    return paths.table("balance").with_suffix(".json")


def _write_decision(decision: Decision, paths: DatasetPaths) -> None:
    write_text_aside(decision_path(paths), json.dumps(asdict(decision), indent=2) + "\n")
