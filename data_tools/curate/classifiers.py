"""Rules of the user: any class that scores pairs, named in the configuration.

    class Aesthetic:
        def score(self, images: Sequence[bytes], captions: Sequence[str]) -> Sequence[float]:
            ...

    curate.classifiers='[{target: "mine.scorers:Aesthetic", min_score: 4.5}]'

The class is constructed once, without arguments; `score` gets the files as the crawl stored them
(JPEG), up to 256 at a time. Scores are kept in tables/scores/: with another min_score, or after a
killed run, only missing scores are computed. Delete that folder when the class itself has changed.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.config import ClassifierConfig
from data_tools.ground.aside import written_aside
from data_tools.tables.schema import DataError, DatasetPaths
from data_tools.tables.scratch import files_pattern
from data_tools.work.progress import StageProgress

BATCH_SIZE = 256
BATCHES_PER_FILE = 64
SCORES = pa.schema([("uid", pa.string()), ("score", pa.float32())])


class Classifier(Protocol):
    """What the class of the user must offer. A higher score is a better pair."""

    def score(self, images: Sequence[bytes], captions: Sequence[str]) -> Sequence[float]:
        """Return a finite number for each pair, in their order."""


def load_classifier(target: str) -> Classifier:
    """Import and construct the class MODULE:NAME. DataError with its name if that fails."""
    module, _, name = target.partition(":")
    try:
        classifier: Classifier = getattr(importlib.import_module(module), name)()
    except Exception as error:  # the user's module may raise anything
        raise DataError(f"the classifier {target} can't be made: {error!r}") from error
    if not callable(getattr(classifier, "score", None)):
        raise DataError(f"the classifier {target} has no method score(images, captions)")
    return classifier


def drop_low_scores(
    database: duckdb.DuckDBPyConnection, config: ClassifierConfig, paths: DatasetPaths
) -> None:
    """Score the live pairs, and reject those below `min_score`. DataError names a classifier that
    raises, or does not answer with one finite number per pair."""
    folder = paths.root / "tables" / "scores"
    folder /= hashlib.sha256(config.target.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    _use_scores(database, folder)
    (missing,) = database.execute(
        "SELECT count(*) FROM live WHERE uid NOT IN (SELECT uid FROM scores)"
    ).fetchall()[0]
    if missing:
        with StageProgress("classify", missing) as progress:
            for table in _scored(database, load_classifier(config.target), config.target, paths):
                with written_aside(folder / f"{uuid.uuid4().hex}.parquet") as aside:
                    pq.write_table(table, aside)
                progress.advance(table.num_rows)
        _use_scores(database, folder)
    database.execute(
        """
        INSERT INTO rejected
        SELECT uid, 'classifier', $target || ': ' || round(score, 4) || ' < ' || $least
        FROM live JOIN scores USING (uid) WHERE score < $least
        """,
        {"target": config.target, "least": config.min_score},
    )


def _use_scores(database: duckdb.DuckDBPyConnection, folder: Path) -> None:
    """Make the table `scores` (uid, score) of the files in `folder`."""
    empty = SCORES.empty_table()
    database.register("no_scores", empty)
    kept, parameters = "SELECT uid, score FROM no_scores", {}
    if any(folder.glob("*.parquet")):
        parameters = {"files": files_pattern(folder, "*.parquet")}
        kept += " UNION ALL SELECT uid, score FROM read_parquet($files)"
    database.execute(
        f"CREATE OR REPLACE TABLE scores AS SELECT uid, any_value(score) AS score "
        f"FROM ({kept}) GROUP BY uid",
        parameters,
    )
    database.unregister("no_scores")


def _scored(
    database: duckdb.DuckDBPyConnection, classifier: Classifier, target: str, paths: DatasetPaths
) -> Iterator[pa.Table]:
    rows = database.cursor().sql("""
        SELECT uid, caption, shard, "offset", size FROM live JOIN places USING (uid)
        WHERE uid NOT IN (SELECT uid FROM scores) ORDER BY shard, "offset"
        """)
    waiting: list[pa.Table] = []
    for batch in rows.to_arrow_reader(BATCH_SIZE):
        uids, captions, shards, offsets, sizes = (c.to_pylist() for c in batch.columns)
        images = [_read(paths.crawl / s, o, n) for s, o, n in zip(shards, offsets, sizes)]
        scores = _ask(classifier, target, images, captions)
        waiting.append(pa.table({"uid": uids, "score": scores}, schema=SCORES))
        if len(waiting) == BATCHES_PER_FILE:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _ask(
    classifier: Classifier, target: str, images: list[bytes], captions: list[str]
) -> list[float]:
    try:
        scores = [float(score) for score in classifier.score(images, captions)]
    except Exception as error:  # the user's class may raise anything
        raise DataError(f"the classifier {target} failed: {error!r}") from error
    if len(scores) != len(images) or not all(math.isfinite(score) for score in scores):
        raise DataError(
            f"the classifier {target} answered {len(images)} pairs with {len(scores)} scores, "
            f"{sum(not math.isfinite(score) for score in scores)} of them not finite"
        )
    return scores


def _read(tar: Path, offset: int, size: int) -> bytes:
    try:
        with tar.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), size, offset)
    except FileNotFoundError:
        raise DataError(f"{tar} is gone: run the crawl again") from None
