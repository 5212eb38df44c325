"""Cuts the best part of a scored data set into a data set of its own: new shards, new manifest,
same order. The command is data_tools/subset.py.

Scores come from `python -m pipeline.score`. The ledger goes along; what was left out is there as
"dropped:score". Nothing of the source is changed: another share is another folder.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.config import fingerprint
from data_tools.dataset.manifest import (
    Manifest,
    ShardEntry,
    save_manifest,
)
from data_tools.dataset.scores import SORT_MEMORY, made_from, scored_shards, scores_path
from data_tools.dataset.shard_writer import ShardWriter
from data_tools.tables.schema import DROPPED, LEDGER, PACKED, DataError
from data_tools.work.progress import StageProgress

ROWS_PER_BATCH = 65536


@dataclass(frozen=True)
class Selection:
    """Pairs above `score`, and of those that have just it, the keys up to `last_key`.

    Equal scores are many where captions and images repeat; the key decides, so that a share is
    exact and the same on every machine.
    """

    score: float
    last_key: str
    num_pairs: int

    def holds(self, key: str, score: float | None) -> bool:
        if score is None:
            return False
        return score > self.score or (score == self.score and key <= self.last_key)


def select(manifest: Manifest, *, keep_share: float | None, min_score: float | None) -> Selection:
    """Of the scored pairs, the best `keep_share`, or all from `min_score` on. DataError when that
    is none."""
    files = scored_shards(manifest)
    with duckdb.connect() as database:
        database.execute(f"SET memory_limit = '{SORT_MEMORY}'")
        scored = "FROM read_parquet($files) WHERE score IS NOT NULL"
        named: dict[str, object] = {"files": files}
        total = _one_row(database, f"SELECT count(*) {scored}", named)[0]
        if keep_share is not None:
            wanted = round(keep_share * total)
        else:
            enough = f"SELECT count(*) {scored} AND score >= $lowest::FLOAT"
            wanted = _one_row(database, enough, {**named, "lowest": min_score})[0]
        if not wanted:
            raise DataError(f"none of {total} scored pairs is selected: ask for a larger part")
        ranked = f"SELECT key, score {scored} ORDER BY score DESC, key LIMIT 1 OFFSET {wanted - 1}"
        last = _one_row(database, ranked, named)
    return Selection(last[1], last[0], wanted)


def _one_row(
    database: duckdb.DuckDBPyConnection, query: str, named: dict[str, object]
) -> tuple[Any, ...]:
    return tuple(database.execute(query, named).fetchall()[0])


def write_subset(
    manifest: Manifest, selection: Selection, out_dir: Path, samples_per_shard: int
) -> Manifest:
    """Shards, sizes.json, ledger and manifest in the new folder `out_dir`, whole or not at all."""
    if out_dir.exists():
        raise DataError(f"out_dir={out_dir} exists: name a new folder, or remove it first")
    aside = out_dir.with_name(f".{out_dir.name}.{uuid.uuid4().hex[:8]}.tmp")
    (aside / "shards").mkdir(parents=True)
    try:
        entries = _write_shards(manifest, selection, aside / "shards", samples_per_shard)
        sizes = {Path(entry.path).name: entry.num_samples for entry in entries}
        (aside / "shards" / "sizes.json").write_text(json.dumps(sizes, indent=1) + "\n")
        if (manifest.root / "ledger.parquet").exists():
            _write_ledger(manifest, selection, aside)
        model = (made_from(scores_path(manifest, manifest.shards[0])) or "").partition(" ")[0]
        made = fingerprint(manifest.fingerprint, model, selection)
        subset = Manifest(aside, made, tuple(entries))
        save_manifest(subset, aside / "manifest.json")
        os.rename(aside, out_dir)
    except OSError as error:
        raise DataError(f"cannot write {out_dir}: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Manifest(out_dir, made, subset.shards)


def _write_shards(
    manifest: Manifest, selection: Selection, folder: Path, samples_per_shard: int
) -> list[ShardEntry]:
    entries: list[ShardEntry] = []
    writer = ShardWriter(folder, 0)
    with StageProgress("subset", selection.num_pairs) as progress:
        for shard in manifest.shards:
            for key, image, text, metadata in _selected(manifest, shard, selection):
                if writer.num_samples == samples_per_shard:
                    entries.append(writer.close())
                    writer = ShardWriter(folder, len(entries))
                writer.add(key, image, text.decode(), json.loads(metadata or b"{}"))
                progress.advance()
    return [*entries, writer.close()]


def _selected(
    manifest: Manifest, shard: ShardEntry, selection: Selection
) -> Iterator[tuple[str, bytes, bytes, bytes]]:
    """(key, image, text, json) in the shard's order."""
    path = manifest.shard_path(shard)
    rows = pq.read_table(manifest.index_path(shard)).to_pylist()
    scores = pq.read_table(scores_path(manifest, shard)).to_pylist()
    if [row["key"] for row in rows] != [row["key"] for row in scores]:
        raise DataError(f"the scores of {path} are of other samples: score again")
    with closing(path.open("rb")) as file:
        for row, score in zip(rows, scores):
            if not selection.holds(row["key"], score["score"]):
                continue
            image, text, metadata = (
                os.pread(file.fileno(), max(0, row[f"{part}_size"]), row[f"{part}_offset"])
                for part in ("image", "text", "json")
            )
            if not image.startswith(b"\xff\xd8"):
                raise DataError(f"{path}: {row['key']} is no JPEG; only those are packed here")
            yield row["key"], image, text, metadata


def _write_ledger(manifest: Manifest, selection: Selection, folder: Path) -> None:
    with duckdb.connect() as database, pq.ParquetWriter(folder / "ledger.parquet", LEDGER) as out:
        database.execute(f"SET memory_limit = '{SORT_MEMORY}'")
        database.execute("SET temp_directory = $folder", {"folder": str(folder / ".sort")})
        columns = ", ".join(n for n in LEDGER.names if n not in ("status", "detail"))
        rows = database.sql(
            f"""SELECT {columns},
                CASE WHEN dropped THEN '{DROPPED}:score' ELSE status END AS status,
                CASE WHEN dropped THEN format('score {{:.4f}}', score) ELSE detail END AS detail
            FROM (SELECT *, status = '{PACKED}' AND NOT coalesce(
                    score > $score::FLOAT OR (score = $score::FLOAT AND uid <= $last_key), false
                  ) AS dropped FROM read_parquet($ledger))
            ORDER BY uid""",
            params={
                "score": selection.score,
                "last_key": selection.last_key,
                "ledger": str(manifest.root / "ledger.parquet"),
            },
        )
        for batch in rows.to_arrow_reader(ROWS_PER_BATCH):
            out.write_table(pa.Table.from_batches([batch]).select(LEDGER.names).cast(LEDGER))
    shutil.rmtree(folder / ".sort", ignore_errors=True)
