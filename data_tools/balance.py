"""The balance stage: flatten the head of the distribution, keep the tail (CLIP, arXiv 2103.00020,
section 2.2; MetaCLIP, arXiv 2309.16671, algorithm 1).

    count_e = candidates that query e found        p_e  = min(1, t / (s * count_e))
    P(x)    = 1 - prod over e in x of (1 - p_e)    keep x iff hash(seed, uid) < P(x)

s, the share that crawl and curation will leave, makes t the number that is left of a query rather
than the number that is crawled. MetaCLIP draws a random number for each (text, query); a hash of
the uid decides the same without a generator: the same whatever the order or the number of
processes, and nested, since a larger t raises P and leaves the hash.

The table of candidates is read in batches: once for the counts, once for the decision, and once
more for each step of the bisection where t is to give a number of pairs.
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
    """What the stage decided for the whole table; `tables/balance.json` holds it."""

    max_per_query: int
    """t."""
    expected_survival: float
    seed: int
    candidates: int
    matches: int
    """Of queries in captions: the sum of the counts."""
    capped_queries: int
    """Those with more than t / s candidates."""
    tail_share: float
    """Share of the matches that is of queries with fewer than t / s candidates."""
    expected_kept: float
    expected_kept_sd: float
    """Standard deviation of the number kept, over seeds."""
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
    print(told(decision, job.balance), file=sys.stderr, flush=True)
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
    """Choose t as the configuration has it, and say what it does.

    `batches` gives the candidates' query ids from the start each time it is called.
    """
    s = config.expected_survival
    t = config.max_per_query
    if config.tail_share > 0:
        t = smallest(lambda t: tail_share(counts, t, s) >= config.tail_share, _largest(counts, s))
    elif config.target_pairs > 0:
        t = smallest(
            # rounded: a sum of floats may miss a whole number by its last digits
            lambda t: round(s * expected_kept(batches(), counts, t, s)[1], 6)
            >= config.target_pairs,
            _largest(counts, s),
        )
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
    """The `query_ids` of tables that have the columns of CANDIDATES, as list arrays."""
    for table in tables:
        for batch in table_batches(table, CANDIDATES, ["query_ids"]):
            yield batch.column("query_ids")


def count_per_query(batches: Iterable[pa.Array]) -> np.ndarray:
    """int64 array: entry e is the number of candidates that have query e."""
    counts = np.zeros(0, np.int64)
    for ids in batches:
        more = np.bincount(ids.flatten().to_numpy())
        if len(more) > len(counts):
            counts, more = more, counts
        counts[: len(more)] += more
    return counts


def missed_per_query(counts: np.ndarray, t: float, s: float = 1.0) -> np.ndarray:
    """1 - p_e of every query, float64. `counts` may be estimates, and zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1.0 - np.fmin(1.0, t / (s * counts))


def keep_probabilities(query_ids: pa.Array, missed: np.ndarray) -> np.ndarray:
    """P(x) of every candidate of a batch, float64; 0 for one that no query found."""
    lengths = query_ids.value_lengths().to_numpy()
    factors = missed[query_ids.flatten().to_numpy()]
    probability = np.zeros(len(lengths))
    if len(factors):
        # reduceat takes an empty slice for one of its first element: rows without a query are out
        found = lengths > 0
        starts = (np.cumsum(lengths) - lengths)[found]
        probability[found] = 1.0 - np.multiply.reduceat(factors, starts)
    return probability


def unit_hashes(uids: Sequence[str], seed: int) -> np.ndarray:
    """xxh64(seed, "balance/" + uid) / 2^64 as float64 in [0, 1).

    The prefix keeps the decision independent of other hashes of the uid: were the kept ones later
    sorted by the same hash, those with a small P would all come first. Of the 64 bits the upper 53
    are used: dividing all of them can round up to 1.0, and a candidate with P = 1 would be lost.
    """
    digests = (xxhash.xxh64_intdigest(f"balance/{uid}".encode(), seed % 2**64) for uid in uids)
    return (np.fromiter(digests, np.uint64, len(uids)) >> np.uint64(11)) * 2.0**-53


def expected_kept(
    batches: Iterable[pa.Array], counts: np.ndarray, t: int, s: float = 1.0
) -> tuple[int, float, float]:
    """Number of candidates; mean and variance of the number kept of them at `t`."""
    missed = missed_per_query(counts, t, s)
    candidates, mean, variance = 0, 0.0, 0.0
    for ids in batches:
        probability = keep_probabilities(ids, missed)
        candidates += len(ids)
        mean += float(probability.sum())
        variance += float((probability * (1 - probability)).sum())
    return candidates, mean, variance


def tail_share(counts: np.ndarray, t: int, s: float = 1.0) -> float:
    """Share of all matches that is of queries with fewer than t / s candidates; MetaCLIP 2
    (arXiv 2507.22062) carries this from one pool to another to find its t."""
    total = counts.sum()
    return float(counts[s * counts < t].sum() / total) if total else 0.0


def smallest(enough: Callable[[int], bool], largest: int) -> int:
    """The smallest t from 1 to `largest` that is enough, by bisection; `largest` when none is.

    `enough` must stay true once it is.
    """
    low, high = 0, largest
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _largest(counts: np.ndarray, s: float) -> int:
    """A t that caps no query, and is more than what the largest one will have."""
    return int(s * counts.max(initial=0)) + 1


def told(decision: Decision, config: BalanceConfig) -> str:
    """The decision in two lines, and a third where the target is out of reach."""
    s = decision.expected_survival
    survive = f", of which {s * decision.expected_kept:,.0f} should survive" if s < 1 else ""
    lines = [
        f"  t = {decision.max_per_query:,}: {decision.capped_queries:,} queries are capped; those "
        f"below it have {decision.tail_share:.1%} of {decision.matches:,} matches",
        f"  kept {decision.kept:,} pairs, expected {decision.expected_kept:,.0f} "
        f"+- {decision.expected_kept_sd:,.0f}{survive}",
    ]
    if round(s * decision.expected_kept, 6) < config.target_pairs:
        lines.append(
            f"  balance.target_pairs = {config.target_pairs:,} is more than there is: every pair "
            "is kept; more sources or queries give more"
        )
    return "\n".join(lines)


def chosen_max_per_query(config: BalanceConfig, paths: DatasetPaths) -> int:
    """t: of the configuration, or as the balance stage chose it. DataError when it has not run."""
    if config.max_per_query > 0:
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
