"""Cuts the best part of a scored data set into a data set of its own: new shards, new manifest,
same order. The command is data_tools/subset.py.

Scores come from `python -m pipeline.score`. The ledger is copied, and lists pairs that were left
out as "dropped:score". The source is not changed: another share goes into another folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import pyarrow.parquet as pq

from data_tools.config import fingerprint
from data_tools.dataset.manifest import (
    Manifest,
    ShardEntry,
    save_manifest,
)
from data_tools.dataset.scores import made_from, scored_shards, scores_path
from data_tools.dataset.shard_writer import ShardWriter
from data_tools.ground.aside import written_aside
from data_tools.tables.schema import DROPPED, LEDGER, PACKED, DataError
from data_tools.tables.scratch import files_pattern, query_rows, scratch_database
from data_tools.work.progress import StageProgress


@dataclass(frozen=True)
class Selection:
    """Pairs with a higher score than `score`, and those with an equal one and a key up to
    `last_key`.

    Scores are often equal, where captions and images repeat. Comparing keys too makes a share exact
    and the same on every machine.
    """

    score: float
    last_key: str
    num_pairs: int

    def holds(self, key: str, score: float | None) -> bool:
        """Whether a pair is selected; one without a score never is."""
        if score is None:
            return False
        return score > self.score or (score == self.score and key <= self.last_key)


def select(manifest: Manifest, *, keep_share: float | None, min_score: float | None) -> Selection:
    """Select the best `keep_share` of the scored pairs, or those with at least `min_score`.
    DataError if no pair is selected."""
    files = [files_pattern(file) for file in scored_shards(manifest)]
    # the data set may lie where nothing can be written: TMPDIR takes what does not fit into memory
    with (
        TemporaryDirectory(prefix="subset.") as folder,
        scratch_database(Path(folder) / "select") as database,
    ):
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
    """Write shards, sizes.json, ledger and manifest to the new folder `out_dir`, whole or not at
    all."""
    if out_dir.exists():
        raise DataError(f"out_dir={out_dir} exists: name a new folder, or remove it first")
    try:
        with written_aside(out_dir) as aside:
            (aside / "shards").mkdir(parents=True)
            entries = _write_shards(manifest, selection, aside / "shards", samples_per_shard)
            sizes = {Path(entry.path).name: entry.num_samples for entry in entries}
            (aside / "shards" / "sizes.json").write_text(json.dumps(sizes, indent=1) + "\n")
            if (manifest.root / "ledger.parquet").exists():
                _write_ledger(manifest, selection, aside)
            model = (made_from(scores_path(manifest, manifest.shards[0])) or "").partition(" ")[0]
            made = fingerprint(manifest.fingerprint, model, selection)
            subset = Manifest(aside, made, tuple(entries))
            save_manifest(subset, aside / "manifest.json")
    except OSError as error:
        raise DataError(f"cannot write {out_dir}: {error}") from error
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
    """Yield (key, image, text, json) of the selected samples, in the shard's order."""
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
    columns = ", ".join(n for n in LEDGER.names if n not in ("status", "detail"))
    query = f"""
        SELECT {columns},
               CASE WHEN dropped THEN '{DROPPED}:score' ELSE status END AS status,
               CASE WHEN dropped THEN format('score {{:.4f}}', score) ELSE detail END AS detail
        FROM (
            SELECT *, status = '{PACKED}' AND NOT coalesce(
                score > $score::FLOAT OR (score = $score::FLOAT AND uid <= $last_key), false
            ) AS dropped
            FROM read_parquet($ledger)
        )
        ORDER BY uid
    """
    parameters = {
        "score": selection.score,
        "last_key": selection.last_key,
        "ledger": files_pattern(manifest.root / "ledger.parquet"),
    }
    with (
        scratch_database(folder / ".scratch") as database,
        pq.ParquetWriter(folder / "ledger.parquet", LEDGER) as writer,
    ):
        for rows in query_rows(database, query, LEDGER, parameters):
            writer.write_table(rows)
