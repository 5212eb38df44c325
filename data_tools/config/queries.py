"""Settings of the queries stage: which sources the list of concepts is made of.

The sources are read in the order file, WordNet, unigrams, bigrams, titles, composed; a query that
several of them have belongs to the first.
"""

import glob
import os
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Optional

from data_tools.ground.fields import at_least, more_than, null_hashed_as, out_of_bounds

# The files of WordNet's dict folder that hold nouns, and the categories that they are divided into
# (lexnames(5WN)): number in the data files -> name.
NOUN_CATEGORIES = {
    3: "tops",
    4: "act",
    5: "animal",
    6: "artifact",
    7: "attribute",
    8: "body",
    9: "cognition",
    10: "communication",
    11: "event",
    12: "feeling",
    13: "food",
    14: "group",
    15: "location",
    16: "motive",
    17: "object",
    18: "person",
    19: "phenomenon",
    20: "plant",
    21: "possession",
    22: "process",
    23: "quantity",
    24: "relation",
    25: "shape",
    26: "state",
    27: "substance",
    28: "time",
}
NOUN, HYPERNYM = "noun", "hypernym"
FIELD = re.compile(r"\{([^{}]*)\}")


class Lemmas(Enum):
    none = "none"
    heads = "heads"
    all = "all"


class WordCounts(Enum):
    none = "none"
    text = "text"
    wordfreq = "wordfreq"


@dataclass(kw_only=True, slots=True)
class WordNetConfig:
    dict_dir: str = ""
    """Folder with WordNet's index.* and data.* files (Debian: apt-get install wordnet-base, then
    /usr/share/wordnet)."""
    lemmas: Lemmas = Lemmas.none
    """Which lemmas are queries: none, heads (the first of each synset, as MetaCLIP) or all."""
    limit: Optional[int] = null_hashed_as(0, at_least(1, default=None, null="takes all"))
    """Largest number of queries taken; null takes all."""


@dataclass(kw_only=True, slots=True)
class TextConfig:
    """Text whose words and pairs of words are counted."""

    paths: list[str] = field(default_factory=list)
    """Files or glob patterns, also .gz .zst .bz2 .xz: plain text (.txt), Wikipedia dumps (.xml),
    what wikiextractor --json wrote (.jsonl .json wiki_NN)."""
    wordnet_glosses: bool = False
    """Count WordNet's definitions and examples too (1.46 million words)."""
    max_keys_in_memory: int = at_least(1, default=4_000_000)
    """Distinct words, and distinct pairs, held before they are spilled to disk; about 150 bytes
    each. Counts stay exact."""
    num_processes: int = at_least(1, default=1)
    """Processes that read the mark-up of dumps, which is the slow part; the counts do not depend on
    it."""
    memory_limit_mib: int = at_least(64, default=1024)
    """Memory in MiB for summing the spilled counts."""


@dataclass(kw_only=True, slots=True)
class UnigramsConfig:
    counts: WordCounts = WordCounts.none
    """Where counts come from: none, text, or wordfreq (where no large text is at hand)."""
    min_count: int = at_least(1, default=100)
    """Smallest number of times that a word occurs in the text. The default is CLIP's, for English
    Wikipedia (2.4e9 words)."""
    wordfreq_language: str = "en"
    """Language of wordfreq's list, as an ISO code."""
    wordfreq_min_zipf: float = 1.62
    """log10 of occurrences per 1e9 words; 100 in 2.4e9 words is 1.62."""
    limit: Optional[int] = null_hashed_as(0, at_least(1, default=None, null="takes all"))
    """Largest number of queries taken, most frequent first; null takes all."""


@dataclass(kw_only=True, slots=True)
class BigramsConfig:
    limit: Optional[int] = null_hashed_as(0, at_least(1, default=None, null="takes none"))
    """Number of pairs taken, best PMI first (MetaCLIP: 100,646); null takes none."""
    min_pair_count: int = at_least(1, default=20)
    """Smallest number of times that a pair occurs in the text. PMI is highest for words seen once:
    this bound keeps that noise out."""


@dataclass(kw_only=True, slots=True)
class TitlesConfig:
    paths: list[str] = field(default_factory=list)
    """Files or glob patterns of title and views: .txt (title, tab, views; no header), .csv .tsv
    .parquet (named columns), Wikimedia's pageviews-* files; also .gz .zst .bz2 .xz."""
    title_column: str = "title"
    """Column that holds the title, in .csv, .tsv and .parquet files."""
    views_column: str = "views"
    """Column that holds the number of views, in .csv, .tsv and .parquet files."""
    min_views: int = at_least(0, default=70)
    """Summed over all rows and files; MetaCLIP's value, for 26 sampled days."""
    pageviews_domain: str = "en"
    """The project whose rows of pageviews-* files count."""
    from_text: bool = False
    """Take the titles in queries.text.paths too. They have no views: min_views does not apply, the
    longest articles come first."""
    limit: Optional[int] = null_hashed_as(0, at_least(1, default=None, null="takes all"))
    """Largest number of queries taken, most viewed first (MetaCLIP: 61,235); null takes all."""


@dataclass(kw_only=True, slots=True)
class ComposedConfig:
    """Phrases from templates: each field stands for every word of its list."""

    templates: list[str] = field(default_factory=list)
    """Such as "{colour} {artifact}" or "a photo of {noun}, a type of {hypernym}". A field is a key
    of `words`, a noun category of WordNet (animal, artifact, food, ...), `noun` (all of
    noun_categories), or `hypernym` of the one noun in the template."""
    words: dict[str, list[str]] = field(default_factory=dict)
    """Name of a field -> the words that it stands for."""
    noun_categories: list[str] = field(default_factory=list)
    """Noun categories of WordNet that {noun} stands for."""
    noun_min_zipf: Optional[float] = null_hashed_as(
        0.0, more_than(0, default=None, null="leaves out none")
    )
    """Leave out nouns that are rarer: log10 of occurrences per 1e9 words, by wordfreq; a second
    word counts as ten times rarer. Null leaves out none."""
    noun_max_words: int = at_least(1, default=2)
    """Most words of a noun."""
    limit: Optional[int] = null_hashed_as(
        0, at_least(1, default=None, null="takes them up to queries.total")
    )
    """Largest number of phrases, the same for each template as far as its grid reaches, chosen by
    hash of (seed, words); null takes them up to queries.total."""


@dataclass(kw_only=True, slots=True)
class QueriesConfig:
    path: str = ""
    """The user's queries: text file of one a line, in Unicode, blank lines and lines that start
    with # skipped; or a .csv .tsv .parquet table; or a glob pattern of several. Text, csv and tsv
    also as .gz .zst .bz2 .xz."""
    column: str = "query"
    """Column that holds the query, in .csv, .tsv and .parquet files."""
    total: Optional[int] = null_hashed_as(0, at_least(1, default=None, null="sets no limit"))
    """Largest number of queries over all sources; the last sources are cut. Null sets no limit."""
    seed: int = at_least(0, default=0)
    """Seed of the choice among composed phrases."""
    wordnet: WordNetConfig = field(default_factory=WordNetConfig)
    """Queries from WordNet."""
    text: TextConfig = field(default_factory=TextConfig)
    """Text whose words are counted."""
    unigrams: UnigramsConfig = field(default_factory=UnigramsConfig)
    """Queries that are single words."""
    bigrams: BigramsConfig = field(default_factory=BigramsConfig)
    """Queries that are pairs of words."""
    titles: TitlesConfig = field(default_factory=TitlesConfig)
    """Queries that are titles of articles."""
    composed: ComposedConfig = field(default_factory=ComposedConfig)
    """Queries that are made from templates."""


def problems(config: QueriesConfig) -> list[str]:
    """Every problem; DataError while running is left for what is inside the files."""
    if not _sources(config):
        return [
            "queries.path is not given: add queries.path=FILE (one query a line), or "
            "queries=default"
        ]
    found = out_of_bounds(config, "queries")
    if config.path and not _files(config.path):
        found.append(f"queries.path = {config.path}: no such file; one query a line, UTF-8")
    for name, patterns in [
        ("queries.text.paths", config.text.paths),
        ("queries.titles.paths", config.titles.paths),
    ]:
        found += [
            f"{name} = {pattern}: no such file; give files or glob patterns"
            for pattern in patterns
            if not _files(pattern)
        ]
    return found + _missing_wordnet(config) + _missing_text(config) + _composed(config)


def _sources(config: QueriesConfig) -> list[str]:
    used = {
        "path": bool(config.path),
        "wordnet": config.wordnet.lemmas is not Lemmas.none,
        "unigrams": config.unigrams.counts is not WordCounts.none,
        "bigrams": config.bigrams.limit is not None,
        "titles": bool(config.titles.paths) or config.titles.from_text,
        "composed": bool(config.composed.templates),
    }
    return [name for name, is_used in used.items() if is_used]


def _files(pattern: str) -> list[str]:
    if os.path.isfile(pattern):
        return [pattern]
    return [name for name in glob.glob(pattern, recursive=True) if os.path.isfile(name)]


def _missing_wordnet(config: QueriesConfig) -> list[str]:
    """WordNet's folder is needed by three sources; say which when it is not there."""
    needed_by = {
        f"queries.wordnet.lemmas={config.wordnet.lemmas.name}": config.wordnet.lemmas
        is not Lemmas.none,
        "queries.text.wordnet_glosses": config.text.wordnet_glosses,
        "the nouns of queries.composed.templates": bool(noun_fields(config.composed)),
    }
    needs = [name for name, is_needed in needed_by.items() if is_needed]
    folder = config.wordnet.dict_dir
    if not needs or os.path.isdir(folder):
        return []
    return [
        f"queries.wordnet.dict_dir = {folder or '(not given)'}: no such folder, needed by "
        f"{', '.join(needs)}; apt-get install wordnet-base and give /usr/share/wordnet, or another "
        f"WordNet dict folder"
    ]


def _missing_text(config: QueriesConfig) -> list[str]:
    has_text = bool(config.text.paths) or config.text.wordnet_glosses
    needs = []
    if config.unigrams.counts is WordCounts.text:
        needs.append("queries.unigrams.counts=text")
    if config.bigrams.limit is not None and config.bigrams.limit > 0:
        needs.append("queries.bigrams")
    found = []
    if needs and not has_text:
        found.append(
            f"queries.text.paths is empty, needed by {' and '.join(needs)}: add "
            f"'queries.text.paths=[FILE]' or queries.text.wordnet_glosses=true"
        )
    if config.titles.from_text and not config.text.paths:
        found.append(
            "queries.titles.from_text: queries.text.paths is empty; add the dump there, or use "
            "queries.titles.paths"
        )
    return found


def noun_fields(config: ComposedConfig) -> set[str]:
    """The fields of all templates whose words come from WordNet."""
    fields = {name for template in config.templates for name in FIELD.findall(template)}
    return (fields & {NOUN, HYPERNYM, *NOUN_CATEGORIES.values()}) - set(config.words)


def _composed(config: QueriesConfig) -> list[str]:
    composed = config.composed
    if not composed.templates:
        return []
    found = []
    if not (composed.limit or config.total):
        found.append(
            "queries.composed.limit = null and queries.total = null: a grid of words can be "
            "endless; give one of the two"
        )
    if NOUN in noun_fields(composed) and not composed.noun_categories:
        found.append(
            "queries.composed.noun_categories is empty, and {noun} stands for them: name some of "
            f"{sorted(NOUN_CATEGORIES.values())}"
        )
    for name in composed.noun_categories:
        if name not in NOUN_CATEGORIES.values():
            found.append(
                f"queries.composed.noun_categories = {name}: is none of "
                f"{sorted(NOUN_CATEGORIES.values())}"
            )
    for name, words in composed.words.items():
        field_name = f"queries.composed.words.{name}"
        if name in (NOUN, HYPERNYM, *NOUN_CATEGORIES.values()):
            found.append(f"{field_name}: the name stands for WordNet's nouns; rename the list")
        elif not words or not all(word.strip() for word in words):
            found.append(f"{field_name} = {words}: give one word or more, none of them blank")
    for template in composed.templates:
        found += _template(template, composed)
    return found


def _template(template: str, config: ComposedConfig) -> list[str]:
    name = f"queries.composed.templates = {template!r}"
    fields = FIELD.findall(template)
    rest = FIELD.sub("", template)
    if not fields or "{" in rest or "}" in rest:
        return [f"{name}: needs fields such as {{noun}}, each with both braces"]
    nouns = {NOUN, *NOUN_CATEGORIES.values()}
    known = {HYPERNYM, *nouns, *config.words}
    unknown = [field_name for field_name in fields if field_name not in known]
    if unknown:
        return [
            f"{name}: unknown field(s) {unknown}; known are {sorted(known)}, and keys of "
            f"queries.composed.words"
        ]
    if HYPERNYM in fields and sum(field_name in nouns for field_name in fields) != 1:
        return [f"{name}: {{hypernym}} needs exactly one noun field beside it"]
    return []
