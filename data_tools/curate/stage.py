"""The flow of the curate stage: captions, then numbers, then pixels, then comparisons of pictures.

Rules are applied in this order, and the first one that a pair breaks is its fate:

    captions        captions.py          text alone, in several processes
    metadata        rules.py             mature, size, aspect
    pixels          features.py          decoded once, kept in tables/features/; contrast
    contamination   contamination.py     before duplicates: else a copy of an evaluation image could
                                         be the pair that stays for its duplicates
    duplicates      duplicates.py        same bytes, then near pictures; captions and queries are
                                         gathered
    classifiers     classifiers.py       last, on the fewest pairs: they cost most

Memory does not grow with the crawl: tables are streamed, DuckDB joins and sorts on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.config import CurateConfig, DatasetJob
from data_tools.curate import captions, features
from data_tools.curate.classifiers import drop_low_scores
from data_tools.curate.contamination import CONTAMINATION, drop_contaminated, evaluation_files
from data_tools.curate.duplicates import (
    collect_captions,
    drop_exact_duplicates,
    drop_near_duplicates,
    unite_queries,
)
from data_tools.curate.near_duplicates import Nearness
from data_tools.curate.rules import apply_rule, metadata_rules, pixel_rules
from data_tools.tables.schema import (
    CURATED,
    FATES,
    FETCHED,
    KEPT,
    REJECTED,
    UNITED,
    DataError,
    DatasetPaths,
)
from data_tools.tables.scratch import files_pattern, scratch_database, sql_text, write_query
from data_tools.work.processes import in_processes
from data_tools.work.progress import StageProgress

CAPTIONS_PER_UNIT = 16384
_JUDGED = pa.schema(
    [
        ("uid", pa.string()),
        ("caption", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


def inputs(job: DatasetJob) -> list[str]:
    """Return hashes of the outside files that the curated table depends on: of the content of the
    lists of terms, and of names, sizes and times of the evaluation sets, which may be gigabytes."""
    config = job.curate
    lists = [config.boilerplate_path or captions.BOILERPLATE, config.unsafe_terms_path]
    contents = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in lists if path]
    stamps = hashlib.sha256()
    for file in evaluation_files(config.evaluation_sets):
        state = file.stat()
        stamps.update(f"{file}\n{state.st_size} {state.st_mtime_ns}\n".encode("utf-8", "replace"))
    return [*contents, stamps.hexdigest()]


def run(job: DatasetJob, paths: DatasetPaths) -> dict[str, int]:
    """Write the curated table, the fates of the rejected pairs, and the list of images near
    evaluation images. DataError when nothing is left, and when the disk is full."""
    _refuse_missing(paths)
    try:
        return _run(job.curate, paths)
    except (OSError, duckdb.IOException, duckdb.OutOfMemoryException) as error:
        raise DataError(
            f"cannot curate below {paths.root}: {error}. Make room there and run again: images "
            "that were decoded are not decoded again"
        ) from error


def _run(config: CurateConfig, paths: DatasetPaths) -> dict[str, int]:
    scratch = paths.root / "tables" / ".curate.tmp"
    with scratch_database(scratch) as database:
        num_fetched = _judge_captions(database, config, paths, scratch)
        _make_tables(database, paths, scratch)
        for rule in metadata_rules(config):
            apply_rule(database, rule, "live")
        if _needs_pixels(config):
            features.write_features(paths, database, config.processes)
            _look_at_pixels(database, config, paths)
        if config.drop_exact_duplicates:
            drop_exact_duplicates(database, config.caption_choice)
        if config.near_duplicate_bits is not None:
            nearness = Nearness(config.near_duplicate_bits, config.near_duplicate_colour)
            drop_near_duplicates(database, nearness, config.caption_choice)
        for classifier in config.classifiers:
            drop_low_scores(database, classifier, paths)
        collect_captions(database, config.max_captions)
        unite_queries(database)
        return _write(database, config, paths, num_fetched)


def _refuse_missing(paths: DatasetPaths) -> None:
    for name, schema in (("fetched", FETCHED), ("kept", KEPT)):
        path = paths.table(name)
        if not path.exists():
            raise DataError(
                f"{path} does not exist: run the stage that writes it first (python -m "
                "data_tools.build)"
            )
        missing = set(schema.names) - set(pq.read_schema(path).names)
        if missing:
            raise DataError(f"{path} lacks the column(s) {sorted(missing)}: delete it, run again")


def _needs_pixels(config: CurateConfig) -> bool:
    return (
        config.min_grey_std is not None
        or config.near_duplicate_bits is not None
        or bool(config.evaluation_sets)
    )


def _judge_captions(
    database: duckdb.DuckDBPyConnection, config: CurateConfig, paths: DatasetPaths, scratch: Path
) -> int:
    """Write (uid, caption, reason, detail) of every fetched pair; return their number."""
    total: int = pq.read_metadata(paths.table("fetched")).num_rows
    rows = database.cursor().sql(
        "SELECT uid, k.caption FROM read_parquet($fetched) f "
        "JOIN read_parquet($kept) k USING (uid)",
        params=_files(paths),
    )

    def units() -> Iterator[tuple[CurateConfig, list[str], list[str]]]:
        for batch in rows.to_arrow_reader(CAPTIONS_PER_UNIT):
            yield config, batch.column(0).to_pylist(), batch.column(1).to_pylist()

    done = 0
    with (
        StageProgress("captions", total) as progress,
        pq.ParquetWriter(scratch / "judged.parquet", _JUDGED) as writer,
    ):
        for table in in_processes(judge, units(), config.processes):
            writer.write_table(table)
            done += table.num_rows
            progress.advance(table.num_rows)
    if done != total:
        raise DataError(
            f"{total - done} fetched images are not among the kept pairs: {paths.table('kept')} "
            "was changed after the crawl. Run the crawl again"
        )
    return total


def judge(config: CurateConfig, uids: list[str], texts: list[str]) -> pa.Table:
    """Return the captions as they will be packed, and the rule that each breaks."""
    judged = captions.CaptionRules(config).judge([text or "" for text in texts])
    columns = {name: [getattr(j, name) for j in judged] for name in _JUDGED.names[1:]}
    return pa.table({"uid": uids, **columns}, schema=_JUDGED)


def _files(paths: DatasetPaths) -> dict[str, str]:
    return {name: files_pattern(paths.table(name)) for name in ("fetched", "kept")}


def _make_tables(database: duckdb.DuckDBPyConnection, paths: DatasetPaths, scratch: Path) -> None:
    """Make the tables `pairs`, `places` (where the image of a pair lies), `rejected` and `merged`,
    and the view `live` of the pairs that are not rejected."""
    judged = files_pattern(scratch / "judged.parquet")
    database.execute(
        """
        CREATE TABLE places AS
        SELECT uid, shard, "offset", size, width, height, original_width, original_height, sha256
        FROM read_parquet($fetched)
        """,
        {"fetched": files_pattern(paths.table("fetched"))},
    )
    database.execute(
        """
        CREATE TABLE pairs AS
        SELECT p.uid, j.caption, p.sha256, p.original_width, p.original_height,
               k.query_ids, len(k.query_ids) AS num_queries,
               coalesce(k.mature, false) AS mature, k.source
        FROM places p JOIN read_parquet($judged) j USING (uid)
        JOIN read_parquet($kept) k USING (uid)
        """,
        {"judged": judged, "kept": files_pattern(paths.table("kept"))},
    )
    database.execute(
        "CREATE TABLE rejected AS SELECT uid, reason, detail FROM read_parquet($judged) "
        "WHERE reason != ''",
        {"judged": judged},
    )
    database.execute("CREATE TABLE merged (uid VARCHAR, main VARCHAR)")
    database.execute(
        "CREATE VIEW live AS SELECT * FROM pairs p "
        "WHERE NOT EXISTS (SELECT 1 FROM rejected r WHERE r.uid = p.uid)"
    )


def _look_at_pixels(
    database: duckdb.DuckDBPyConnection, config: CurateConfig, paths: DatasetPaths
) -> None:
    files = sql_text(files_pattern(features.folder(paths), "*.parquet"))
    database.execute(f"CREATE VIEW features AS SELECT * FROM read_parquet({files})")
    database.execute("CREATE VIEW seen AS SELECT * FROM live JOIN features USING (uid)")
    for rule in pixel_rules(config):
        apply_rule(database, rule, "seen")
    if config.evaluation_sets:
        drop_contaminated(
            database, config.evaluation_sets, config.max_contamination_bits, config.processes
        )
        write_query(
            database,
            "SELECT * FROM contamination ORDER BY evaluation_image, distance, uid",
            paths.table("contamination"),
            CONTAMINATION,
        )


def _write(
    database: duckdb.DuckDBPyConnection, config: CurateConfig, paths: DatasetPaths, num_fetched: int
) -> dict[str, int]:
    if not config.evaluation_sets:
        paths.table("contamination").unlink(missing_ok=True)
    write_query(
        database,
        f"SELECT uid, '{REJECTED}:' || reason AS status, NULL::INTEGER AS http_status, detail "
        "FROM rejected ORDER BY uid",
        paths.fates("curate"),
        FATES,
    )
    reasons = database.execute(
        "SELECT reason, count(*) FROM rejected GROUP BY reason ORDER BY count(*) DESC, reason"
    ).fetchall()
    counts = {"fetched": num_fetched, **dict(reasons)}
    counts["curated"] = num_fetched - sum(count for _, count in reasons)
    if counts["curated"] == 0:
        paths.table("curated").unlink(missing_ok=True)
        listed = ", ".join(f"{count} {reason}" for reason, count in reasons)
        raise DataError(
            f"curation left none of {num_fetched} images: {listed}. Loosen the rules (curate.* "
            "in the configuration)"
        )
    write_query(database, "SELECT * FROM united ORDER BY uid", paths.table("united"), UNITED)
    write_query(
        database,
        "SELECT p.*, l.caption, t.captions, "
        "list_sort(list_concat(l.query_ids, coalesce(u.added, []))) AS query_ids "
        "FROM live l JOIN places p USING (uid) JOIN texts t USING (uid) LEFT JOIN "
        "(SELECT main AS uid, flatten(list(query_ids)) AS added FROM united GROUP BY main) u "
        "USING (uid) ORDER BY uid",
        paths.table("curated"),
        CURATED,
    )
    return counts
