"""The pairs of a data set, shard by shard, through a scorer; a scored shard is not scored again."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import numpy as np
import torch

from data_tools.dataset.manifest import Manifest, ShardEntry
from data_tools.dataset.scores import made_from, scores_path, write_scores
from pipeline.data.faults import SampleError
from pipeline.data.samples.transforms import eval_transform
from pipeline.data.shards.index import SampleIndex, SampleLocation
from pipeline.data.shards.reader import ShardReader
from pipeline.score.scorer import ScoreError, Scorer

LOG_EVERY_S = 10.0
Pair = tuple[str, np.ndarray, str]


def score_shards(
    manifest: Manifest,
    scorer: Scorer,
    shards: Sequence[ShardEntry],
    *,
    batch_size: int,
    num_threads: int,
) -> dict[str, int]:
    """Score those of `shards` that this model has not scored; counts of samples and bad ones.

    A sample that cannot be decoded has no score. Raises ScoreError when a shard has none at all.
    """
    ends = np.cumsum([shard.num_samples for shard in manifest.shards])
    first = {s.path: int(end) - s.num_samples for s, end in zip(manifest.shards, ends)}
    counts = {"samples": 0, "bad": 0, "already_scored": 0}
    index, logged = SampleIndex(manifest), time.monotonic()
    with closing(ShardReader()) as reader, ThreadPoolExecutor(num_threads) as threads:
        for number, shard in enumerate(shards, start=1):
            place = scores_path(manifest, shard)
            wanted = f"{scorer.name} shard {shard.sha256}"
            if made_from(place) == wanted:
                counts["already_scored"] += shard.num_samples
                continue
            start = first[shard.path]
            where = [index.locate(sample) for sample in range(start, start + shard.num_samples)]
            keys, scores = _score(where, scorer, reader, threads, batch_size)
            bad = sum(score is None for score in scores)
            if bad == len(scores) > 0:
                raise ScoreError(
                    f"none of {bad} samples of {shard.path} can be decoded: check the data set "
                    "(python -m data_tools.audit), then run again"
                )
            write_scores(place, keys, scores, wanted)
            counts["samples"] += len(scores)
            counts["bad"] += bad
            if time.monotonic() - logged > LOG_EVERY_S:
                logged = time.monotonic()
                print(f"scored {number} of {len(shards)} shards", file=sys.stderr, flush=True)
    return counts


def _score(
    where: list[SampleLocation],
    scorer: Scorer,
    reader: ShardReader,
    threads: ThreadPoolExecutor,
    batch_size: int,
) -> tuple[list[str], list[float | None]]:
    found: dict[str, float] = {}
    for batch in _batches(where, scorer.image_size, reader, threads, batch_size):
        images = torch.from_numpy(np.stack([pixels for _, pixels, _ in batch]))
        values = scorer(images, [caption for _, _, caption in batch]).tolist()
        found.update(zip((key for key, _, _ in batch), values))
    keys = [location.key for location in where]
    return keys, [found.get(key) for key in keys]


def _batches(
    where: list[SampleLocation],
    image_size: int,
    reader: ShardReader,
    threads: ThreadPoolExecutor,
    batch_size: int,
) -> Iterator[list[Pair]]:
    """Yield batches of pairs, without bad samples. While the model scores one batch, the next is
    decoded."""

    def load(location: SampleLocation) -> Pair | None:
        try:
            image, text = reader.read(location)
            return location.key, eval_transform(image, image_size), text.decode()
        except (
            SampleError,
            OSError,
            ValueError,
        ):  # DecodeError and UnicodeDecodeError are ValueErrors
            return None

    groups = [where[start : start + batch_size] for start in range(0, len(where), batch_size)]
    prefetched: list[Future[Pair | None]] = []
    for group, following in zip(groups, [*groups[1:], []]):
        current = prefetched or [threads.submit(load, location) for location in group]
        prefetched = [threads.submit(load, location) for location in following]
        pairs = [pair for future in current if (pair := future.result()) is not None]
        if pairs:
            yield pairs
