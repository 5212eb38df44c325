"""Word frequencies from the library wordfreq, for users who have no large text to count.

Its English list has 321,180 words, the data frozen in 2021; CLIP's "at least 100 times in English
Wikipedia" (2.4e9 words) is zipf >= log10(100 / 2.4) = 1.62 and leaves 150,354.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from data_tools.queries.optional import load
from data_tools.tables.schema import DataError

# numbers of several digits: wordfreq counts 2019 and 1984 as one word, "0000"
SEVERAL_NUMBERS = re.compile(r"\d[\d.,]+")


def frequent_words(language: str, min_zipf: float) -> Iterator[tuple[str, str]]:
    """Yield (word, "unigrams:zipf ZIPF") down to `min_zipf`, most frequent first; ties in the order
    of their code points."""
    wordfreq, wordlist = _list_of(language)
    frequencies = wordfreq.get_frequency_dict(language, wordlist)
    for word, frequency in sorted(frequencies.items(), key=lambda item: (-item[1], item[0])):
        zipf = round(math.log10(frequency * 1e9), 2)
        if zipf < min_zipf:
            return
        if not SEVERAL_NUMBERS.search(word):
            yield word, f"unigrams:zipf {zipf:.2f}"


def zipf_of(noun: str) -> float:
    """log10 of the occurrences of an English noun per 1e9 words; 0 for unknown words.

    wordfreq knows single words, and rates a phrase about as frequent as its rarest word (polar bear
    3.9, traffic light 4.7); here each further word makes a phrase ten times rarer.
    """
    wordfreq, _ = _list_of("en")
    num_words = len(re.split(r"[\s-]+", noun))
    return max(float(wordfreq.zipf_frequency(noun, "en")) - (num_words - 1), 0.0)


def data_file(language: str) -> Path:
    """The file of the language's list; its content changes only with wordfreq's version."""
    wordfreq, wordlist = _list_of(language)
    return Path(wordfreq.available_languages(wordlist)[language])


def _list_of(language: str) -> tuple[ModuleType, str]:
    """(wordfreq, name of its longest list for the language). Raises DataError if it has none."""
    wordfreq = load(
        "wordfreq", "queries.unigrams.counts=wordfreq or queries.composed.noun_min_zipf"
    )
    for wordlist in ("large", "small"):
        if language in wordfreq.available_languages(wordlist):
            return wordfreq, wordlist
    known = ", ".join(sorted(wordfreq.available_languages("small")))
    raise DataError(
        f"queries.unigrams.wordfreq_language = {language}: wordfreq has no list; it has {known}"
    )
