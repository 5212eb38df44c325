"""Words and pairs of words of a text: unigrams by count, bigrams by the rank of their PMI.

PMI(a, b) = log2(n_ab * N / (n_a * n_b)), N = words of the text. MetaCLIP keeps pairs with
PMI >= 30; that bound is not portable. PMI is largest where n_ab = n_a = n_b = n, and is then
log2(N / n): for English Wikipedia (N = 2.4e9, log2 N = 31.2) a bound of 30 asks for
n_ab / (n_a n_b) >= 2^30 / N = 0.45, so a pair that always stands together passes if it occurs twice
(PMI 30.2) and fails if it occurs three times (29.6); one that occurs 100,000 times cannot reach
more than 14.6. It selects near-hapax words by the size of one n-gram file, and in a text of a
million words (log2 N = 20) it selects nothing. Here a pair must occur `min_pair_count` times, which
removes the near-hapax words, and the best `limit` by PMI are taken: a rank means the same in every
text.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_tools.config.queries import QueriesConfig, WordCounts
from data_tools.queries.articles import read_articles
from data_tools.queries.counting import SpilledCounts, rows
from data_tools.queries.files import expand
from data_tools.queries.wordnet import WordNet
from data_tools.text.fold import fold
from data_tools.work.progress import StageProgress

# Combining marks, and the joiners inside Indic and Persian words. `\w` matches none of them, and
# would cut Hindi words into pieces.
MARKS = frozenset(
    char
    for char in map(chr, range(0x300, 0x20000))
    if unicodedata.category(char) in ("Mn", "Mc") or char in "\u200c\u200d"
)
# "rock'n'roll" and "black-and-white" are words. Text in scripts without spaces between words
# (Chinese, Thai) must be segmented before; else whole clauses count as words.
ASCII_WORD = re.compile(r"[a-z0-9]+(?:['-][a-z0-9]+)*")
WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")
MARKED = rf"[\w{''.join(sorted(MARKS))}]+"
MARKED_WORD = re.compile(rf"{MARKED}(?:['\u2019-]{MARKED})*")
LONGEST_WORD_CHARS = 64


@dataclass
class TextCounts:
    """The counts of one pass over the text. The count of a title is the length of its articles."""

    words: SpilledCounts
    pairs: SpilledCounts
    titles: SpilledCounts
    num_words: int = 0


def count_text(config: QueriesConfig, wordnet: WordNet | None, folder: Path) -> TextCounts:
    """Read the text once. Counts that exceed queries.text.max_keys_in_memory go to `folder`."""
    max_keys = config.text.max_keys_in_memory
    words, pairs, titles = (
        SpilledCounts(folder, name, max_keys) for name in ("words", "pairs", "titles")
    )
    counts = TextCounts(words, pairs, titles)
    with StageProgress("queries") as progress:
        if config.text.wordnet_glosses and wordnet is not None:
            for gloss in wordnet.glosses():
                _count(gloss, config, counts)
                progress.advance()
        for path in expand(config.text.paths):
            for article in read_articles(path, config.text.num_processes):
                _count(article.text, config, counts)
                if article.title and config.titles.from_text:
                    titles.add(article.title, len(article.text))
                progress.advance()
    return counts


def _count(text: str, config: QueriesConfig, counts: TextCounts) -> None:
    if not (config.bigrams.limit or config.unigrams.counts is WordCounts.text):
        return
    for line in text.splitlines():
        words, pairs = words_and_pairs(line)
        counts.num_words += len(words)
        counts.words.update(words)
        if config.bigrams.limit:
            counts.pairs.update(pairs)


def words_and_pairs(line: str) -> tuple[list[str], list[str]]:
    """(folded words, pairs). A pair is "a b" for neighbours with only a space between them, because
    captions are searched for exactly that text."""
    folded = fold(line).replace("_", "|")
    words: list[str] = []
    pairs: list[str] = []
    last, last_end = "", -2
    for match in _expression(folded).finditer(folded):
        start, end = match.span()
        if end - start > LONGEST_WORD_CHARS:
            continue
        word = sys.intern(match.group())
        words.append(word)
        if start == last_end + 1 and folded[last_end] == " ":
            pairs.append(f"{last} {word}")
        last, last_end = word, end
    return words, pairs


def _expression(folded: str) -> re.Pattern[str]:
    """The fastest of the expressions that is correct for the text. The three differ in speed by 10
    : 5 : 1."""
    if folded.isascii():
        return ASCII_WORD
    return WORD if MARKS.isdisjoint(folded) else MARKED_WORD


def unigrams(
    counts: TextCounts, min_count: int, folder: Path, memory_limit_mib: int
) -> Iterator[tuple[str, str]]:
    """Yield (word, "unigrams:COUNT"), most frequent first; ties in the order of their code
    points."""
    sql = (
        f"SELECT key, count FROM {counts.words.summed()} WHERE count >= ? ORDER BY count DESC, key"
    )
    for word, count in rows(sql, [min_count], folder, memory_limit_mib):
        yield word, f"unigrams:{count}"


def bigrams(
    counts: TextCounts, min_pair_count: int, folder: Path, memory_limit_mib: int
) -> Iterator[tuple[str, str]]:
    """Yield ("a b", "bigrams:PMI"), highest PMI first; ties by count, then in the order of their
    code points. Pairs that are no more frequent than by chance (PMI <= 0) are left out."""
    sql = f"""
        WITH words AS {counts.words.summed()}, pairs AS {counts.pairs.summed()}
        SELECT pairs.key, log2(pairs.count * ?::DOUBLE / first.count / second.count)
        FROM pairs
        JOIN words AS first ON first.key = split_part(pairs.key, ' ', 1)
        JOIN words AS second ON second.key = split_part(pairs.key, ' ', 2)
        WHERE pairs.count >= ? AND pairs.count * ?::DOUBLE / first.count / second.count > 1
        ORDER BY pairs.count * ?::DOUBLE / first.count / second.count DESC, pairs.count DESC,
                 pairs.key
    """
    num_words = float(counts.num_words)
    parameters = [num_words, min_pair_count, num_words, num_words]
    for pair, pmi in rows(sql, parameters, folder, memory_limit_mib):
        yield pair, f"bigrams:{pmi:.2f}"
