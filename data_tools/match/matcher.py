"""Which queries occur in which captions, for many captions at a time.

Both sides are cut into tokens (text/tokens.py); a query is found where its tokens follow each
other. A query of one token is a look-up. Longer queries are the patterns of an Aho-Corasick
automaton over the bytes of token numbers instead of text: a word is 3 bytes, a space is 1, and
every word that is in no longer query is the same single byte, so that a caption of 67 bytes becomes
about 25. Measured at 500,000 queries on captions of 55 characters: the automaton and the filter
before it (heads.py) take 1.3 us instead of 7.7 us per caption, because the cost is the cache miss
of each step.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from ahocorasick_rs import BytesAhoCorasick, Implementation

from data_tools.match.heads import Heads
from data_tools.match.pool.clean import single_spaced
from data_tools.tables.schema import DataError
from data_tools.text.entities import entities_at
from data_tools.text.tokens import Tokens, cut

# Text that goes through the automaton at a time. It bounds the memory for the matches of a query
# that is everywhere (a match is a tuple of 150 bytes until it is in an array).
CHUNK_BYTES = 1 << 20
# First bytes of a code. All following bytes are below 0x80, so that no code begins inside another.
OTHER, SPACE, NUMBERED = 0x80, 0x81, 0xC0


@dataclass(frozen=True)
class Matches:
    """Distinct (caption, query found in it), ordered by caption, then query."""

    row: np.ndarray
    """int64: positions of the captions."""
    query: np.ndarray
    """int32: ids of the queries."""


class QueryMatcher:
    """Finds queries in captions. `queries`: string, no nulls; a query's id is its position.

    Both sides are brought to the form of `data_tools.text.fold`, with their case kept if
    `case_sensitive`. Raises DataError if two queries are the same in that form.
    """

    def __init__(self, queries: pa.Array, case_sensitive: bool = False) -> None:
        self._case_sensitive = case_sensitive
        self._num_queries = len(queries)
        tokens = cut(single_spaced(queries), case_sensitive)
        encoded = tokens.values.dictionary_encode()
        self._numbers = {value: n for n, value in enumerate(encoded.dictionary.to_pylist())}
        self._unknown = len(self._numbers)
        numbers = encoded.indices.to_numpy()
        ends = np.flatnonzero(np.diff(tokens.row, append=len(queries)))  # the line feeds
        starts = np.concatenate([[0], ends[:-1] + 1])[: len(ends)]
        lengths = ends - starts
        self._single = self._singles(queries, numbers, starts, lengths)
        self._long = np.flatnonzero(lengths > 1)
        self._codes = self._token_codes(numbers, starts, lengths)
        self._heads = Heads(numbers, starts, lengths)
        self._automaton = self._build(queries, numbers, starts, ends)

    def match(self, caption: str) -> list[int]:
        """Sorted distinct ids of the queries that are in `caption`."""
        return self.match_many(single_spaced(pa.array([caption], pa.string()))).query.tolist()

    def match_many(self, captions: pa.Array) -> Matches:
        """All matches in `captions`: string, no nulls, single-spaced (`single_spaced`)."""
        plain_rows, other_rows = _by_plainness(captions)
        keys = [np.zeros(0, np.int64)]
        for rows in (plain_rows, other_rows):
            chosen = captions if len(rows) == len(captions) else captions.take(pa.array(rows))
            for start, stop in _chunks(chosen):
                tokens = cut(chosen.slice(start, stop - start), self._case_sensitive)
                row, query = self._find(tokens)
                keys.append(rows[start:stop][row] * self._num_queries + query)
        key = np.sort(np.concatenate(keys))
        key = key[np.diff(key, prepend=-1) != 0]
        row, query = np.divmod(key, max(self._num_queries, 1))
        return Matches(row, query.astype(np.int32))

    def _find(self, tokens: Tokens) -> tuple[np.ndarray, np.ndarray]:
        """(rows, queries) of all matches, in any order and possibly repeated."""
        numbers = self._known(tokens.values)
        single = self._single[numbers]
        at = np.flatnonzero(single >= 0)
        rows, queries = tokens.row[at], single[at]
        if self._automaton is None:
            return rows, queries
        near = self._heads.near(numbers)
        haystack, starts = self._codes.encode(
            np.where(near.covered, numbers[near.at], self._unknown)
        )
        # overlapping: else a match hides those inside and across it ("ice hockey" would hide
        # "hockey" and "hockey stick"), and 41 % of the matches of web captions are lost
        matches = self._automaton.find_matches_as_indexes(haystack, overlapping=True)
        flat = np.fromiter(itertools.chain.from_iterable(matches), np.int64, 3 * len(matches))
        pattern, start = flat[0::3], flat[1::3]
        at = near.at[np.searchsorted(starts, start)]
        return (
            np.concatenate([rows, tokens.row[at]]),
            np.concatenate([queries, self._long[pattern]]),
        )

    def _known(self, values: pa.Array) -> np.ndarray:
        """The number of each token; a token that is in no query gets self._unknown."""
        # the distinct tokens of a chunk are few: Arrow finds them, and only they are looked up in
        # the large dictionary
        encoded = values.dictionary_encode()
        distinct = encoded.dictionary.to_pylist()
        unknown = itertools.repeat(self._unknown)
        numbers = np.fromiter(map(self._numbers.get, distinct, unknown), np.int32, len(distinct))
        return numbers[encoded.indices.to_numpy()]

    def _singles(
        self, queries: pa.Array, numbers: np.ndarray, starts: np.ndarray, lengths: np.ndarray
    ) -> np.ndarray:
        """int64: for each token number the id of the query that is this token, or -1."""
        single = np.full(len(self._numbers) + 1, -1, np.int64)
        ids = np.flatnonzero(lengths == 1)
        tokens = numbers[starts[ids]]
        single[tokens] = ids
        if (single >= 0).sum() < len(ids):
            raise _repeated(queries, ids, tokens.tolist())
        return single

    def _token_codes(
        self, numbers: np.ndarray, starts: np.ndarray, lengths: np.ndarray
    ) -> TokenCodes:
        in_long = np.zeros(len(self._numbers) + 1, bool)
        in_long[numbers[np.repeat(lengths > 1, lengths + 1)]] = True
        in_long[self._numbers.get(b"\n", 0)] = False
        return TokenCodes(in_long, self._numbers.get(b" ", -1))

    def _build(
        self, queries: pa.Array, numbers: np.ndarray, starts: np.ndarray, ends: np.ndarray
    ) -> BytesAhoCorasick | None:
        if len(self._long) == 0:
            return None
        content, at = self._codes.encode(numbers)
        firsts, lasts = at[starts[self._long]].tolist(), at[ends[self._long]].tolist()
        patterns = [content[first:last] for first, last in zip(firsts, lasts)]
        if len(set(patterns)) < len(patterns):
            raise _repeated(queries, self._long, patterns)
        # noncontiguous is 3 times slower; a DFA is no faster here and takes 0.8 GB
        return BytesAhoCorasick(patterns, implementation=Implementation.ContiguousNFA)


def _repeated(queries: pa.Array, ids: np.ndarray, forms: Sequence[object]) -> DataError:
    """The error that names the first two of the queries `ids` that have the same form."""
    first: dict[object, int] = {}
    for place, form in zip(ids.tolist(), forms):
        if (before := first.setdefault(form, place)) != place:
            break
    return DataError(
        f"the queries table holds one query twice: {queries[before].as_py()!r} and "
        f"{queries[place].as_py()!r} match the same captions. Delete tables/queries.parquet in "
        "out_dir and run python -m data_tools.build again: the list is made anew, without repeats"
    )


class TokenCodes:
    """Codes tokens as bytes: SPACE, OTHER, or NUMBERED + 2 more bytes (3 above a million
    tokens)."""

    def __init__(self, numbered: np.ndarray, space: int) -> None:
        numbers = np.cumsum(numbered) - 1
        width = 3 if numbered.sum() <= 1 << 20 else 4
        shifts = 7 * np.arange(width - 1, -1, -1)
        self._codes = ((numbers[:, None] >> shifts) & 0x7F).astype(np.uint8)
        self._codes[:, 0] |= NUMBERED
        self._codes[~numbered, 0] = OTHER
        self._lengths = np.where(numbered, width, 1)
        if space >= 0:
            self._codes[space, 0], self._lengths[space] = SPACE, 1

    def encode(self, tokens: np.ndarray) -> tuple[bytes, np.ndarray]:
        """(the codes of the tokens one after the other, int64: the offset of each)."""
        lengths = self._lengths[tokens]
        codes = self._codes[tokens]
        used = np.arange(codes.shape[1]) < lengths[:, None]
        return codes[used].tobytes(), np.cumsum(lengths) - lengths


def _by_plainness(captions: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """(positions of the captions that are ASCII without entities, positions of the others)."""
    offsets = _offsets(captions)
    if offsets[0] == offsets[-1]:
        return np.arange(len(captions)), np.zeros(0, np.int64)
    text = memoryview(captions.buffers()[2])[offsets[0] : offsets[-1]]
    high = np.flatnonzero(np.frombuffer(text, np.uint8) & 0x80)
    special = np.concatenate([high, entities_at(text)]).astype(np.int64) + offsets[0]
    other = np.zeros(len(captions), bool)
    other[np.searchsorted(offsets, special, side="right") - 1] = True
    return np.flatnonzero(~other), np.flatnonzero(other)


def _offsets(texts: pa.Array) -> np.ndarray:
    return np.frombuffer(texts.buffers()[1], np.int32, len(texts) + 1, texts.offset * 4)


def _chunks(captions: pa.Array) -> list[tuple[int, int]]:
    """(start, stop) ranges of captions with at most CHUNK_BYTES of text, or of one longer
    caption."""
    if len(captions) == 0:
        return []
    offsets = _offsets(captions).astype(np.int64)
    chunks, start = [], 0
    while start < len(captions):
        stop = int(np.searchsorted(offsets, offsets[start] + CHUNK_BYTES, side="right")) - 1
        stop = min(max(stop, start + 1), len(captions))
        chunks.append((start, stop))
        start = stop
    return chunks
