"""Phrases composed from lists of words: attribute x noun grids, and sentences with a noun's
hypernym.

Queries of one word find captions of one word. A phrase such as "rusty bicycle" finds captions that
say more about the picture than its subject.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from data_tools.config.queries import (
    FIELD,
    HYPERNYM,
    NOUN,
    NOUN_CATEGORIES,
    ComposedConfig,
    noun_fields,
)
from data_tools.queries.word_frequencies import zipf_of
from data_tools.queries.wordnet import Noun, WordNet
from data_tools.tables.schema import DataError

# Phrases of a grid that are sorted at a time: 2^17 of them take 2 MB.
SLICE = 1 << 17
# Hashes of a grid that are computed at a time.
CHUNK = 1 << 20


def phrases(
    config: ComposedConfig, seed: int, wordnet: WordNet | None
) -> Iterator[tuple[str, str]]:
    """Yield (phrase, "composed:TEMPLATE"), one phrase of each template in turn, in the order of the
    phrases' hashes. So a smaller limit gives a subset of a larger one, and a template with a small
    grid leaves its share to the others."""
    words = _word_lists(config, wordnet)
    grids = [Grid(template, words, seed) for template in config.templates]
    streams = [(iter(grid), f"composed:{grid.template}") for grid in grids]
    while streams:
        going = []
        for stream, origin in streams:
            phrase = next(stream, None)
            if phrase is not None:
                yield phrase, origin
                going.append((stream, origin))
        streams = going


def _word_lists(config: ComposedConfig, wordnet: WordNet | None) -> dict[str, list[Noun]]:
    """Field name -> its words, without duplicates. The field hypernym is left out: it follows from
    the noun."""
    lists = {
        name: [Noun(" ".join(word.split()), None) for word in dict.fromkeys(words)]
        for name, words in config.words.items()
    }
    used = noun_fields(config)
    categories = set(NOUN_CATEGORIES.values()) & used
    if NOUN in used:
        categories |= set(config.noun_categories)
    for category in sorted(categories):
        assert wordnet is not None  # the configuration was refused otherwise
        lists[category] = _nouns(category, config, wordnet)
    if NOUN in used:
        names = dict.fromkeys(config.noun_categories)
        lists[NOUN] = [noun for name in names for noun in lists[name]]
    return lists


def _nouns(category: str, config: ComposedConfig, wordnet: WordNet) -> list[Noun]:
    nouns = [
        noun
        for noun in wordnet.nouns(category)
        if len(noun.text.split()) <= config.noun_max_words
        and (config.noun_min_zipf is None or zipf_of(noun.text) >= config.noun_min_zipf)
    ]
    if not nouns:
        raise DataError(
            f"no noun of the category {category} has at most queries.composed.noun_max_words = "
            f"{config.noun_max_words} words and queries.composed.noun_min_zipf = "
            f"{config.noun_min_zipf}: allow more words or rarer nouns"
        )
    return nouns


@dataclass(frozen=True)
class Grid:
    """Every combination of the words of a template's fields. The phrases come in the order of a
    hash of (seed, template, words), which does not depend on the order of the lists."""

    template: str
    words: dict[str, list[Noun]]
    seed: int

    @property
    def axes(self) -> list[list[Noun]]:
        return [self.words[name] for name in FIELD.findall(self.template) if name != HYPERNYM]

    @property
    def size(self) -> int:
        return math.prod(len(axis) for axis in self.axes)

    def __iter__(self) -> Iterator[str]:
        """Yield the phrases, computed slice by slice of the range of the hash: memory does not grow
        with the grid, and phrases that nobody asks for are not computed."""
        axes = self.axes
        hashes = [_hashes([noun.text for noun in axis], self.seed) for axis in axes]
        start = np.uint64(xxhash.xxh64_intdigest(self.template.encode(), self.seed))
        num_slices = -(-self.size // SLICE)
        width = -(-(1 << 64) // max(num_slices, 1))
        for number in range(num_slices):
            first, last = number * width, min((number + 1) * width, 1 << 64) - 1
            for index in _indexes(hashes, start, first, last):
                phrase = self._phrase(axes, int(index))
                if phrase is not None:
                    yield phrase

    def _phrase(self, axes: Sequence[Sequence[Noun]], index: int) -> str | None:
        """The phrase at `index` of the grid; None if its noun has no hypernym, or if a word would
        be in it twice."""
        chosen: list[Noun] = []
        for axis in reversed(axes):
            index, place = divmod(index, len(axis))
            chosen.append(axis[place])
        chosen.reverse()
        texts = [noun.text for noun in chosen]
        if len({word for text in texts for word in text.lower().split()}) < sum(
            len(text.split()) for text in texts
        ):
            return None
        if HYPERNYM in FIELD.findall(self.template):
            above = next((noun.hypernym for noun in chosen if noun.hypernym), None)
            if above is None:
                return None
            names = iter(texts)
            return FIELD.sub(
                lambda match: above if match[1] == HYPERNYM else next(names), self.template
            )
        names = iter(texts)
        return FIELD.sub(lambda match: next(names), self.template)


def _hashes(words: Sequence[str], seed: int) -> np.ndarray:
    return np.array([xxhash.xxh64_intdigest(word.encode(), seed) for word in words], np.uint64)


def _indexes(hashes: Sequence[np.ndarray], start: np.uint64, first: int, last: int) -> np.ndarray:
    """int64: the indexes in the grid (last axis fastest) whose hash is in [first, last], ordered by
    hash."""
    size = math.prod(len(axis) for axis in hashes)
    places_of_chunks, keys = [], []
    for begin in range(0, size, CHUNK):
        rest = np.arange(begin, min(begin + CHUNK, size), dtype=np.int64)
        places = []
        for axis in reversed(hashes):
            rest, place = np.divmod(rest, len(axis))
            places.append(place)
        key = np.full(len(rest), start)
        for axis, place in zip(hashes, reversed(places), strict=True):
            key = _mix(key ^ axis[place])
        chosen = np.flatnonzero((key >= np.uint64(first)) & (key <= np.uint64(last)))
        places_of_chunks.append(chosen + begin)
        keys.append(key[chosen])
    every = np.concatenate(places_of_chunks)
    return every[np.argsort(np.concatenate(keys), kind="stable")]


def _mix(key: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014), wrapping at 2^64."""
    key = key + np.uint64(0x9E3779B97F4A7C15)
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))
