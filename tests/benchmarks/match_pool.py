"""Synthetic queries and captions for benchmarks: Zipf draws from a real vocabulary.

Words are drawn with their frequencies in English (wordfreq), so that common ones are in most
captions and most are in few: what makes matching slow (a cache miss for every rare word) and
balancing necessary. Of the queries, half are single words, half pairs of a common word and any
word.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.tables.schema import QUERIES, DatasetPaths, write_table
from data_tools.text.fold import fold

MEDIAN_WORDS = 9
"""Of a caption; about 55 characters. LAION's English alt texts have about 60."""
ROWS_PER_GROUP = 50_000
ROWS_PER_FILE = 1_000_000
HOSTS = 997


@dataclass(frozen=True)
class Vocabulary:
    words: list[str]
    cumulative: np.ndarray
    """Of the frequencies."""

    def draw(self, random: np.random.Generator, count: int) -> np.ndarray:
        """Positions of `count` words, each with its frequency."""
        places = np.searchsorted(self.cumulative, random.random(count))
        return np.minimum(places, len(self.words) - 1)


def english() -> Vocabulary:
    """wordfreq's 320,000 words; without it, numbers as words with Zipf's frequencies."""
    try:
        import wordfreq
    except ImportError:
        words = [f"w{number}" for number in range(320_000)]
        frequencies = 1 / np.arange(1, len(words) + 1)
    else:
        words = wordfreq.top_n_list("en", 400_000, ascii_only=False)
        frequencies = np.array([wordfreq.word_frequency(word, "en") for word in words])
    return Vocabulary(words, np.cumsum(frequencies / frequencies.sum()))


def queries_of(vocabulary: Vocabulary, count: int) -> list[str]:
    """Distinct folded queries."""
    random = np.random.default_rng(1)
    chosen = dict.fromkeys(fold(word) for word in vocabulary.words[: count // 2])
    while len(chosen) < count:
        common = vocabulary.draw(random, count)
        other = random.integers(0, min(len(vocabulary.words), count), count)
        for first, second in zip(common, other):
            chosen[fold(f"{vocabulary.words[first]} {vocabulary.words[second]}")] = None
            if len(chosen) == count:
                break
    return list(chosen)


def write_queries(paths: DatasetPaths, queries: list[str]) -> None:
    table = pa.table(
        {
            "query_id": pa.array(range(len(queries)), pa.int32()),
            "query": queries,
            "folded": queries,
            "origin": ["benchmark"] * len(queries),
        }
    )
    write_table(table, paths.table("queries"), QUERIES)


def captions_of(vocabulary: Vocabulary, count: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    lengths = np.clip(random.lognormal(np.log(MEDIAN_WORDS), 0.6, count), 1, 60).astype(int)
    drawn = vocabulary.draw(random, int(lengths.sum())).tolist()
    captions, start = [], 0
    for length in lengths.tolist():
        words = [vocabulary.words[place] for place in drawn[start : start + length]]
        captions.append(" ".join(words).capitalize())
        start += length
    return captions


def write_pool(folder: Path, vocabulary: Vocabulary, count: int) -> Iterator[Path]:
    """Parquet files of (url, caption, width, height), written as they are asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, count, ROWS_PER_FILE):
        path = folder / f"{first // ROWS_PER_FILE:05d}.parquet"
        writer = None
        for start in range(first, min(first + ROWS_PER_FILE, count), ROWS_PER_GROUP):
            numbers = range(start, min(start + ROWS_PER_GROUP, first + ROWS_PER_FILE, count))
            table = pa.table(
                {
                    "url": [_url(number) for number in numbers],
                    "caption": captions_of(vocabulary, len(numbers), seed=start),
                    "width": pa.array([200 + number % 1800 for number in numbers], pa.int32()),
                    "height": pa.array([200 + number % 1200 for number in numbers], pa.int32()),
                }
            )
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
        assert writer is not None
        writer.close()
        yield path


def _url(number: int) -> str:
    scattered = number * 2654435761 % 2**32
    return (
        f"https://www.site{number % HOSTS}.example/wp-content/uploads/{scattered:08x}/{number}.jpg"
    )
