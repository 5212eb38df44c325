"""The curate stage: apply the rules, drop duplicates, write down what went and why."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from data_tools.config import CurateConfig, DatasetJob
from data_tools.curate.rules import RULES, duplicates
from data_tools.progress import StageProgress
from data_tools.schema import (
    CURATED,
    FATES,
    FETCHED,
    KEPT,
    REJECTED,
    DataError,
    DatasetPaths,
    read_table,
    write_table,
)


def run(job: DatasetJob, paths: DatasetPaths) -> dict[str, int]:
    """Write the curated table and the fates of what was rejected; DataError when nothing is
    left."""
    fetched = read_table(paths.table("fetched"), FETCHED)
    kept = read_table(paths.table("kept"), KEPT).select(["uid", "caption"])
    pairs = fetched.join(kept, "uid", join_type="inner").sort_by("uid")
    if pairs.num_rows != fetched.num_rows:
        raise DataError(
            f"{fetched.num_rows - pairs.num_rows} fetched images are not among the kept pairs: "
            f"{paths.table('kept')} was changed after the crawl. Run the crawl again"
        )
    with StageProgress("curate", total=pairs.num_rows) as progress:
        clean, rejected = apply_rules(with_plain_captions(pairs), job.curate)
        progress.update(pairs.num_rows)
    counts = {"fetched": pairs.num_rows}
    counts |= {reason: len(uids) for reason, uids in rejected.items()}
    counts["curated"] = clean.num_rows
    write_table(_fates(rejected), paths.fates("curate"), FATES)
    if clean.num_rows == 0:
        listed = ", ".join(f"{len(uids)} {reason}" for reason, uids in rejected.items() if uids)
        raise DataError(
            f"curation left none of {pairs.num_rows} images: {listed}. Loosen the rules (curate.* "
            "in the configuration)"
        )
    texts = pa.array([[caption] for caption in clean["caption"].to_pylist()], pa.list_(pa.string()))
    write_table(clean.append_column("captions", texts), paths.table("curated"), CURATED)
    return counts


def with_plain_captions(pairs: pa.Table) -> pa.Table:
    """Runs of white space become one space, those at the ends go: a caption is one line of text."""
    plain = pc.utf8_trim_whitespace(
        pc.replace_substring_regex(pairs["caption"], r"\s+", replacement=" ")
    )
    return pairs.set_column(pairs.column_names.index("caption"), CURATED.field("caption"), plain)


def apply_rules(pairs: pa.Table, config: CurateConfig) -> tuple[pa.Table, dict[str, list[str]]]:
    """What no rule marks, and reason -> uids of what the rule of that name took out."""
    rejected: dict[str, list[str]] = {}
    for reason, rule in RULES.items():
        pairs = _take_out(pairs, rule(pairs, config), reason, rejected)
    if config.drop_exact_duplicates:
        pairs = _take_out(pairs, duplicates(pairs), "duplicate", rejected)
    return pairs, rejected


def _take_out(
    pairs: pa.Table, marked: pa.ChunkedArray, reason: str, rejected: dict[str, list[str]]
) -> pa.Table:
    rejected[reason] = pairs["uid"].filter(marked).to_pylist()
    return pairs.filter(pc.invert(marked))


def _fates(rejected: dict[str, list[str]]) -> pa.Table:
    rows = [
        {"uid": uid, "status": f"{REJECTED}:{reason}"}
        for reason, uids in rejected.items()
        for uid in uids
    ]
    return pa.Table.from_pylist(rows, schema=FATES)
