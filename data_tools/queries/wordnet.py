"""Reads WordNet's dict folder (index.*, data.*; format: wndb(5WN)): lemmas as queries, nouns with
hypernyms for phrases, glosses as text.

CLIP adds "all WordNet synsets not already in the query list"; MetaCLIP counts 86,654 of them: one
query per synset, its head lemma. WordNet 3.0 has 117,659 synsets with 86,571 distinct head lemmas
and 147,306 distinct lemmas in all (lower-cased).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from data_tools.config.queries import NOUN_CATEGORIES, Lemmas
from data_tools.tables.schema import DataError

# Part of speech as in synset ids and pointers. Satellite adjectives (s) are in data.adj.
FILES = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
# data.adj marks where an adjective may stand: "galore(ip)"
MARKER = re.compile(r"\((?:p|a|ip)\)$")
# Hypernyms of scientific names: "Lutra" is a "mammal genus", and no caption says Lutra.
TAXON = re.compile(r"\b(?:genus|family|order|class|phylum|division|kingdom)$")
LIVING = ("animal", "plant")
HYPERNYM, INSTANCE_HYPERNYM = "@", "@i"


@dataclass(frozen=True, slots=True)
class Synset:
    """One meaning and its words. `id` has ImageNet's form, part of speech and offset:
    "n02084071"."""

    id: str
    category: int
    lemmas: tuple[str, ...]
    hypernyms: tuple[str, ...]
    is_instance: bool
    """The synset names one thing, such as a city."""
    gloss: str


@dataclass(frozen=True, slots=True)
class Noun:
    """A noun for phrases."""

    text: str
    hypernym: str | None
    """Head lemma of the synset above; None at the root."""


class WordNet:
    """The synsets of a dict folder, read once. Raises DataError if a file is missing or a line has
    another format."""

    def __init__(self, dict_dir: Path | str) -> None:
        self._folder = Path(dict_dir)
        missing = [path.name for path in wordnet_files(self._folder) if not path.is_file()]
        if missing:
            raise DataError(
                f"queries.wordnet.dict_dir = {self._folder} lacks {', '.join(missing)}: give a "
                f"WordNet dict folder, such as /usr/share/wordnet of Debian's wordnet-base"
            )
        self.synsets: dict[str, Synset] = {}
        for letter, name in FILES.items():
            for synset in self._read_data(letter, self._folder / f"data.{name}"):
                self.synsets[synset.id] = synset
        if not self.synsets:
            raise DataError(f"queries.wordnet.dict_dir = {self._folder}: its data.* hold no synset")

    def queries(self, lemmas: Lemmas) -> Iterator[tuple[str, str]]:
        """Yield (lemma, "wordnet:SYNSET"): nouns, verbs, adjectives, adverbs, each in the order of
        their file."""
        for synset in self.synsets.values():
            chosen = synset.lemmas if lemmas is Lemmas.all else synset.lemmas[:1]
            for lemma in chosen:
                yield lemma, f"wordnet:{synset.id}"

    def nouns(self, category: str) -> Iterator[Noun]:
        """Yield the head lemmas of a noun category ("animal") whose most frequent sense is in it:
        "crane" is an animal or a machine, not both. Names of single things (cities, persons) and
        the scientific names of animals and plants are left out."""
        for synset in self.synsets.values():
            if synset.id[0] != "n" or NOUN_CATEGORIES.get(synset.category) != category:
                continue
            head = synset.lemmas[0]
            if synset.is_instance or self._first_sense.get(head.lower()) != synset.id:
                continue
            above = self._head_above(synset)
            if not (category in LIVING and above and TAXON.search(above)):
                yield Noun(head, above)

    def glosses(self) -> Iterator[str]:
        """Definition and examples of each synset; the examples are in quotation marks."""
        return (synset.gloss for synset in self.synsets.values())

    def _head_above(self, synset: Synset) -> str | None:
        if not synset.hypernyms:
            return None
        above = self.synsets.get(synset.hypernyms[0])
        if above is None:
            raise DataError(
                f"{self._folder}: synset {synset.id} has the hypernym {synset.hypernyms[0]}, which "
                f"data.* lack: the files are not of one version"
            )
        return above.lemmas[0]

    @cached_property
    def _first_sense(self) -> dict[str, str]:
        """Noun -> id of the synset that index.noun lists first, which is its most frequent
        sense."""
        first = {}
        path = self._folder / "index.noun"
        for number, line in _entries(path):
            fields = line.split()
            try:
                num_senses = int(fields[2])
                first[fields[0].replace("_", " ")] = f"n{int(fields[-num_senses]):08d}"
            except (IndexError, ValueError) as error:
                raise _malformed(path, number, line, error) from error
        return first

    def _read_data(self, letter: str, path: Path) -> Iterator[Synset]:
        for number, line in _entries(path):
            try:
                yield _synset(letter, line)
            except (IndexError, ValueError) as error:
                raise _malformed(path, number, line, error) from error


def wordnet_files(folder: Path) -> list[Path]:
    """The files of a dict folder that are read."""
    return [folder / f"{kind}.{name}" for kind in ("index", "data") for name in FILES.values()]


def _entries(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, line), without the lines of the licence, which start with two
    spaces."""
    try:
        for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
            if line.strip() and not line.startswith(b"  "):
                yield number, line.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: line {number} is not UTF-8 ({error.reason})") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give a WordNet dict folder") from error


def _synset(letter: str, line: str) -> Synset:
    """The synset of a line of data.*, whose fields are: offset category type num_words(hex) [word
    lex_id]... num_pointers [symbol offset type source/target]... [frames] | gloss"""
    data, _, gloss = line.partition(" | ")
    fields = data.split()
    num_words = int(fields[3], 16)
    words = fields[4 : 4 + 2 * num_words : 2]
    place = 4 + 2 * num_words
    num_pointers = int(fields[place])
    pointers = fields[place + 1 : place + 1 + 4 * num_pointers]
    if not num_words or len(words) != num_words or len(pointers) != 4 * num_pointers:
        raise ValueError("fewer words or pointers than it says")
    above = [
        (symbol, f"{kind}{offset}")
        for symbol, offset, kind in zip(pointers[::4], pointers[1::4], pointers[2::4], strict=True)
        if symbol in (HYPERNYM, INSTANCE_HYPERNYM)
    ]
    return Synset(
        id=f"{letter}{int(fields[0]):08d}",
        category=int(fields[1]),
        lemmas=tuple(MARKER.sub("", word).replace("_", " ") for word in words),
        hypernyms=tuple(target for _, target in above),
        is_instance=any(symbol == INSTANCE_HYPERNYM for symbol, _ in above),
        gloss=gloss.strip(),
    )


def _malformed(path: Path, number: int, line: str, error: Exception) -> DataError:
    return DataError(
        f"{path}: line {number} is not of WordNet's format ({error}): {line[:60]!r}; give the "
        f"dict folder of WordNet 2.1 to 3.1"
    )
