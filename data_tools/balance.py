"""Stage 3: flatten the head of the distribution, keep the tail (CLIP, arXiv 2103.00020, section
2.2; MetaCLIP, arXiv 2309.16671, algorithm 1).

    count_e = candidates that query e found        p_e  = min(1, t / count_e)
    P(x)    = 1 - prod over e in x of (1 - p_e)    keep x iff hash(seed, uid) < P(x)

MetaCLIP draws a random number for each (text, query); a hash of the uid decides the same without
a generator: the same whatever the order or the number of processes, and nested, since a larger t
raises P and leaves the hash.
"""

from __future__ import annotations

import sys

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from data_tools.config import DatasetJob
from data_tools.progress import StageProgress
from data_tools.schema import (
    CANDIDATES,
    DROPPED,
    FATES,
    KEPT,
    KEPT_STATUS,
    DatasetPaths,
    read_table,
    write_table,
)


def run(job: DatasetJob, paths: DatasetPaths) -> dict[str, int]:
    """Write the kept table and the fates ("kept", "dropped:balance")."""
    candidates = read_table(paths.table("candidates"), CANDIDATES)
    uids = candidates["uid"].to_pylist()
    with StageProgress("balance", total=len(uids)) as progress:
        counts = count_per_query(candidates["query_ids"])
        probability = keep_probabilities(candidates["query_ids"], counts, job.balance.max_per_query)
        kept = unit_hashes(uids, job.balance.seed) < probability
        progress.update(len(uids))
    rows = candidates.append_column("keep_probability", pa.array(probability.astype(np.float32)))
    write_table(rows.filter(pa.array(kept)), paths.table("kept"), KEPT)
    fates = [
        {
            "uid": uid,
            "status": KEPT_STATUS if keep else f"{DROPPED}:balance",
            "detail": f"keep probability {p:.6g}",
        }
        for uid, keep, p in zip(uids, kept, probability)
    ]
    write_table(pa.Table.from_pylist(fates, FATES), paths.fates("balance"), FATES)
    num_kept = int(kept.sum())
    return {
        "candidates": len(uids),
        "capped_queries": int((counts > job.balance.max_per_query).sum()),
        "dropped": len(uids) - num_kept,
        "kept": num_kept,
    }


def count_per_query(query_ids: pa.ChunkedArray) -> np.ndarray:
    """int64 array: entry e is the number of candidates that have query e."""
    return np.bincount(pc.list_flatten(query_ids).to_numpy())


def keep_probabilities(
    query_ids: pa.ChunkedArray, counts: np.ndarray, max_per_query: int
) -> np.ndarray:
    """P(x) of every candidate, float64; 0 for one that no query found."""
    with np.errstate(divide="ignore"):
        missing = 1.0 - np.minimum(1.0, max_per_query / counts)
    lengths = pc.list_value_length(query_ids).to_numpy()
    product = np.ones(len(lengths))
    factors = missing[pc.list_flatten(query_ids).to_numpy()]
    np.multiply.at(product, np.repeat(np.arange(len(lengths)), lengths), factors)
    return 1.0 - product


def unit_hashes(uids: list[str], seed: int) -> np.ndarray:
    """xxh64(seed, "balance/" + uid) / 2^64 as float64 in [0, 1).

    The prefix keeps the decision independent of other hashes of the uid: were the kept ones later
    sorted by the same hash, those with a small P would all come first. Of the 64 bits the upper 53
    are used: dividing all of them can round up to 1.0, and a candidate with P = 1 would be lost.
    """
    digests = (xxhash.xxh64_intdigest(f"balance/{uid}".encode(), seed % 2**64) for uid in uids)
    return np.array([digest >> 11 for digest in digests], dtype=np.uint64) * 2.0**-53


if __name__ == "__main__":
    from data_tools.build import main

    sys.exit(main(sys.argv[1:], stage="balance"))
