"""What the captions are like: languages, n-grams, and whether they are sentences or keywords.

All of it is counted in a sample of the packed captions, because more captions would not make these
figures more precise: the share of distinct n-grams falls with every caption added, so it can only
be compared between samples of one size.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from data_tools.text.fold import fold
from data_tools.text.language import languages
from data_tools.text.tokens import UNSPACED_SCRIPTS

MAX_N = 4
# Prepositions, articles, conjunctions, pronouns and forms of "to be": English phrases and sentences
# have them, lists of keywords do not.
FUNCTION_WORDS = frozenset(
    "a an the this that these those of in on at by for from to with without into onto over under "
    "near between behind about through during and or but as while is are was were be been being it "
    "its he she his her they their we our you your i my who which where when there".split()
)
_UNSPACED = "".join(f"{chr(first)}-{chr(last)}" for first, last in UNSPACED_SCRIPTS)
# In scripts without spaces a letter counts as a word.
WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+(?:['\u2019][^\W_{_UNSPACED}]+)*")


@dataclass(frozen=True)
class CaptionFacts:
    num_captions: int
    languages: list[tuple[str, int]] = field(default_factory=list)
    """ISO code ("" for captions that are too short to detect one) and number of captions; the most
    frequent first."""
    ngrams: list[tuple[int, int, int]] = field(default_factory=list)
    """n, number of n-grams, number of distinct ones; n from 1 to MAX_N."""
    english: int = 0
    """Captions detected as English, which takes five words."""
    sentences: int = 0
    """English captions with one of FUNCTION_WORDS."""


def words(caption: str) -> list[str]:
    """The folded words of a caption."""
    return WORD.findall(fold(caption))


def caption_facts(captions: Sequence[str]) -> CaptionFacts:
    codes = languages(captions)
    counts = Counter(codes)
    distinct: list[set[int]] = [set() for _ in range(MAX_N)]
    totals = [0] * MAX_N
    english = sentences = 0
    for caption, language in zip(captions, codes):
        tokens = words(caption)
        for n in range(1, MAX_N + 1):
            # 64-bit hashes take less memory than the words; the chance of a collision among a few
            # million n-grams is about 1e-6
            grams = [hash(tuple(tokens[at : at + n])) for at in range(len(tokens) - n + 1)]
            totals[n - 1] += len(grams)
            distinct[n - 1].update(grams)
        if language == "en":
            english += 1
            sentences += not FUNCTION_WORDS.isdisjoint(tokens)
    return CaptionFacts(
        num_captions=len(captions),
        languages=sorted(counts.items(), key=lambda item: (-item[1], item[0])),
        ngrams=[(n + 1, totals[n], len(distinct[n])) for n in range(MAX_N)],
        english=english,
        sentences=sentences,
    )


def kind_sentence(facts: CaptionFacts) -> str:
    """Say whether the captions are bags of words or sentences, and by which measure."""
    if not facts.english or facts.english < facts.num_captions / 10:
        return (
            f"Whether they are sentences is not judged: {facts.english:,} of "
            f"{facts.num_captions:,} sampled captions are known to be English."
        )
    share = facts.sentences / facts.english
    verdict = (
        "mostly phrases and sentences"
        if share >= 0.6
        else "mostly bags of words"
        if share <= 0.4
        else "bags of words and sentences by halves"
    )
    return (
        f"They are {verdict}: {share:.0%} of the {facts.english:,} sampled captions known to be "
        "English (five words or more) hold a function word such as of, with, the, is, which lists "
        "of keywords lack."
    )
