"""Stage 2: which queries occur in the captions of the pools: sub-string match, as CLIP and MetaCLIP
choose their pairs.

Both sides are folded (data_tools/queries/fold.py). A match must be bounded: "cat" is in "a cat!",
not in "category". Scripts that write no spaces between words (Chinese, Japanese, Thai, ...) have
no such bounds, so there every occurrence counts.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Sequence

import pyarrow as pa
from ahocorasick_rs import AhoCorasick, Implementation

from data_tools.config import DatasetJob, PoolConfig
from data_tools.progress import StageProgress
from data_tools.queries.fold import fold
from data_tools.schema import CANDIDATES, QUERIES, DatasetPaths, make_uid, read_table, write_table
from data_tools.sources.pool import Pool
from data_tools.tasks import ALL, Task

# Thai, Lao, Myanmar, Khmer, kana, Han (with extensions and compatibility forms)
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


def inputs(config: PoolConfig) -> list[tuple[str, int, int]]:
    """Name, size and time of every file of the pools: the stage runs again when one changes."""
    if not config.enabled:
        return []
    states = [(str(file), file.stat()) for file in Pool(config).files]
    return [(name, state.st_size, state.st_mtime_ns) for name, state in states]


def run(job: DatasetJob, paths: DatasetPaths) -> dict[str, int]:
    """Match every pool file that no task has matched."""
    return run_share(job, paths, ALL)


def run_share(job: DatasetJob, paths: DatasetPaths, task: Task) -> dict[str, int]:
    """Match one task's share of the pool files, each to a table in `paths.matched`."""
    paths.matched.mkdir(parents=True, exist_ok=True)
    if not job.sources.pool.enabled:
        return {"pool_rows": 0}
    matcher = QueryMatcher(read_table(paths.table("queries"), QUERIES)["folded"].to_pylist())
    pool = Pool(job.sources.pool)
    rows, unusable, unmatched = [], 0, 0
    with StageProgress("match") as progress:
        for batch in pool.batches():
            for candidate in batch:
                query_ids = matcher.match(candidate.caption)
                unmatched += not query_ids
                if query_ids:
                    try:
                        uid = make_uid(candidate.url, candidate.caption)
                    except ValueError:  # no address ("http://[x"), or text that is no UTF-8
                        unusable += 1
                        continue
                    fields = {n: getattr(candidate, n) for n in candidate.__dataclass_fields__}
                    rows.append(fields | {"uid": uid, "source": "pool", "query_ids": query_ids})
            progress.advance(len(batch))
    write_table(pa.Table.from_pylist(rows, CANDIDATES), paths.matched / "all.parquet", CANDIDATES)
    return pool.counts() | {
        "pool_unusable_urls": unusable,
        "pool_unmatched": unmatched,
        "matched": len(rows),
    }


class QueryMatcher:
    """An Aho-Corasick automaton over folded queries; `query_id` is the position in the list."""

    def __init__(self, folded_queries: Sequence[str]) -> None:
        # ContiguousNFA: 134k captions/s a core at 500k patterns, against 48k/s noncontiguous
        self._automaton = AhoCorasick(
            list(folded_queries), implementation=Implementation.ContiguousNFA
        )

    def match(self, caption: str) -> list[int]:
        """Sorted distinct ids of the queries that occur in `caption`."""
        text = fold(caption)
        # overlapping: else a match hides those inside and across it ("ice hockey" hides "hockey")
        found = self._automaton.find_matches_as_indexes(text, overlapping=True)
        return sorted({query for query, start, end in found if _bounded(text, start, end)})


def _bounded(text: str, start: int, end: int) -> bool:
    before = start == 0 or not _joined(text[start - 1], text[start])
    return before and (end == len(text) or not _joined(text[end - 1], text[end]))


def _joined(left: str, right: str) -> bool:
    """Whether the two characters belong to one word."""
    if UNSPACED.match(left) or UNSPACED.match(right):
        return unicodedata.category(right)[0] == "M"  # a vowel sign belongs to its letter
    return _in_word(left) and _in_word(right)


def _in_word(char: str) -> bool:
    return unicodedata.category(char)[0] in "LMN"


if __name__ == "__main__":
    from data_tools.build import main

    sys.exit(main(sys.argv[1:], stage="match"))
