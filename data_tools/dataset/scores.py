"""A model's scores for the pairs of a packed data set, by which a better part can be selected.

scores/000000.parquet ...   one per shard, written by `python -m pipeline.score`: SCORES, and in the
                            file's metadata the model and the shard's checksum
ledger.parquet              gets the column `score`
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.dataset.manifest import Manifest, ManifestError, ShardEntry
from data_tools.ground.aside import written_aside
from data_tools.tables.scratch import files_pattern, scratch_database
from data_tools.tables.stream import ROWS_PER_BATCH

# cosine of image and caption features, -1..1; null where the sample could not be decoded
SCORES = pa.schema([("key", pa.string()), ("score", pa.float32())])


def scores_path(manifest: Manifest, shard: ShardEntry) -> Path:
    """Return the file for the scores of a shard."""
    return manifest.root / "scores" / f"{Path(shard.path).stem}.parquet"


def write_scores(path: Path, keys: list[str], scores: list[float | None], made_from: str) -> None:
    """Write the scores of a shard, aside first: a file under its final name holds the whole shard.
    `made_from` (model and shard) goes into the file's metadata."""
    schema = SCORES.with_metadata({"made_from": made_from})
    with written_aside(path) as aside:
        pq.write_table(pa.table([keys, scores], schema=schema), aside, compression="zstd")


def made_from(path: Path) -> str | None:
    """Return the `made_from` of a file of `write_scores`; None if there is no such file."""
    if not path.exists():
        return None
    return (pq.read_schema(path).metadata or {}).get(b"made_from", b"").decode()


def scored_shards(manifest: Manifest) -> list[Path]:
    """Return the files with scores, one for each shard. ManifestError names the first few shards
    without one, and scores of several models, which cannot be compared."""
    files = [(shard, scores_path(manifest, shard)) for shard in manifest.shards]
    missing = [shard.path for shard, file in files if not file.exists()]
    if missing:
        raise ManifestError(
            f"{len(missing)} of {len(files)} shards of {manifest.root} have no scores "
            f"({', '.join(missing[:3])}, ...): run python -m pipeline.score "
            f"manifest={manifest.root / 'manifest.json'} model=..."
        )
    models = {(made_from(file) or "").partition(" shard ")[0] for _, file in files}
    if len(models) > 1:
        raise ManifestError(
            f"{manifest.root / 'scores'} has scores of several models, which do not compare: "
            f"{', '.join(sorted(models))}; delete the folder and score again"
        )
    return [file for _, file in files]


def add_to_ledger(manifest: Manifest) -> int:
    """Add the column `score` to the ledger beside the manifest, if there is one.

    Returns the number of rows with a score. DuckDB joins and sorts on disk: memory does not grow
    with the number of rows.
    """
    ledger = manifest.root / "ledger.parquet"
    if not ledger.exists():
        return 0
    names = [name for name in pq.read_schema(ledger).names if name != "score"]
    files = [files_pattern(file) for file in scored_shards(manifest)]
    num_scored = 0
    with (
        written_aside(ledger) as aside,
        scratch_database(aside.with_suffix(".scratch")) as database,
    ):
        rows = database.sql(
            f"""SELECT {", ".join(f"l.{name}" for name in names)}, s.score
            FROM read_parquet($ledger) l LEFT JOIN read_parquet($scores) s ON l.uid = s.key
            ORDER BY l.uid""",
            params={"ledger": files_pattern(ledger), "scores": files},
        ).to_arrow_reader(ROWS_PER_BATCH)
        with pq.ParquetWriter(aside, rows.schema) as writer:
            for batch in rows:
                writer.write_batch(batch)
                num_scored += batch.num_rows - batch.column("score").null_count
    return num_scored
