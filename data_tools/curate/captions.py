"""Captions are repaired where the repair is certain, and rejected where they do not describe a
picture.

A repair never rejects, and the ledger keeps the caption as it was found. Rules are applied in the
order of `_fault`; the first one that a caption breaks becomes its fate, with the value that broke
it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import ftfy

from data_tools.config import CurateConfig
from data_tools.ground.entities import unescaped
from data_tools.tables.schema import DataError
from data_tools.text.fold import fold
from data_tools.text.language import languages, num_words

# Longer text is no caption, and repairing a hostile one would take seconds.
MAX_REPAIRED_CHARS = 20_000
MAX_FILE_NAME_CHARS = 255
_SPACE = re.compile(r"\s+")
_TAG = re.compile(r"<!--.*?-->|</?[a-zA-Z][^<>]*>", re.DOTALL)
_UNSEEN = re.compile(r"<(script|style)\b[^<>]*>.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
# Curly quotes, ligatures and full-width letters stay: people write them on purpose.
_REPAIR = ftfy.TextFixerConfig(
    unescape_html=False,
    uncurl_quotes=False,
    fix_latin_ligatures=False,
    fix_character_width=False,
    normalization="NFC",
)
_PICTURE_FILE = re.compile(
    r"\S+\.(jpe?g|jpe|jfif|png|gif|webp|avif|bmp|tiff?|heic|heif|svg|ico|raw|cr2|nef|arw|dng|psd)",
    re.IGNORECASE,
)
_CAMERA = re.compile(
    r"((img|imgp|dsc[nf]?|dcim|cimg|mvi|gopr|pxl|hpim|fullsizerender|untitled|unnamed)"
    r"[\s_-]*\(?\d{2}|"
    r"(image|photo|picture|pict?|scan|screen ?shot|screenshot|sam|wp|vid)[\s_-]*\(?\d{3}|[ps]\d{6})"
    r"[\d\s_().:-]*(at[\d\s_().:-]*)?([ap]m)?",
    re.IGNORECASE,
)
_IDENTIFIER = re.compile(r"(?=.*\d)[0-9a-f]{8,}([_-][0-9a-f]{4,})*|\W*\d[\d\W_]{5,}", re.IGNORECASE)
_WORDS = re.compile(r"\w+")
BOILERPLATE = Path(__file__).with_name("boilerplate.txt")


@dataclass(frozen=True)
class Judgement:
    """A caption as it will be packed. `reason` is the rule that rejects it, "" for none; `detail`
    is the value that broke the rule."""

    caption: str
    reason: str
    detail: str


def plain(caption: str) -> str:
    """Make a caption one line of text: runs of white space become one space, those at the ends are
    removed."""
    return _SPACE.sub(" ", caption).strip()


def repaired(caption: str) -> str:
    """Remove tags, and repair entities and mojibake. What only looks like a tag stays ("a < b", "I
    <3 it")."""
    if caption.isascii() and caption.isprintable() and "&" not in caption and "<" not in caption:
        return plain(caption)
    if len(caption) > MAX_REPAIRED_CHARS:
        return plain(caption)
    text = caption
    for _ in range(2):  # entities are often escaped twice: "&amp;eacute;"
        text = unescaped(_TAG.sub(" ", _UNSEEN.sub(" ", text)))
    text = ftfy.fix_text(_TAG.sub(" ", text), _REPAIR)
    return plain(text)


class CaptionRules:
    """The caption rules of a configuration. The lists of boilerplate and unsafe terms are read
    once. DataError for a list that cannot be read."""

    def __init__(self, config: CurateConfig) -> None:
        self._config = config
        self._languages = frozenset(config.languages)
        listed = Path(config.boilerplate_path) if config.boilerplate_path else BOILERPLATE
        self._phrases, self._pattern = (
            read_boilerplate(listed) if config.drop_boilerplate else (frozenset(), None)
        )
        terms = read_terms(Path(config.unsafe_terms_path)) if config.unsafe_terms_path else []
        self._terms = frozenset(terms)
        self._term_words = max((len(term.split()) for term in terms), default=0)

    def judge(self, captions: Sequence[str]) -> list[Judgement]:
        """Return a judgement for each caption, in their order."""
        clean = repaired if self._config.repair_text else plain
        texts = [clean(caption) for caption in captions]
        codes = languages(texts) if self._languages else [""] * len(texts)
        return [Judgement(text, *self._fault(text, code)) for text, code in zip(texts, codes)]

    def _fault(self, text: str, language: str) -> tuple[str, str]:
        return (
            self._bad_length(text)
            or (self._config.drop_file_names and file_name_like(text))
            or self._boilerplate(text)
            or self._unsafe(text)
            or self._other_language(language)
            or ("", "")
        )

    def _bad_length(self, text: str) -> tuple[str, str] | None:
        config = self._config
        chars = len(text)
        if config.min_caption_chars is not None and chars < config.min_caption_chars:
            return "caption_short", f"{chars} characters < {config.min_caption_chars}"
        if config.max_caption_chars is not None and chars > config.max_caption_chars:
            return "caption_long", f"{chars} characters > {config.max_caption_chars}"
        low, high = config.min_caption_words, config.max_caption_words
        if low is None and high is None:
            return None
        words = num_words(text)
        if low is not None and words < low:
            return "caption_few_words", f"{words} words < {low}"
        if high is not None and words > high:
            return "caption_many_words", f"{words} words > {high}"
        return None

    def _boilerplate(self, text: str) -> tuple[str, str] | None:
        folded = " ".join(_WORDS.findall(fold(text)))
        if folded in self._phrases:
            return "caption_boilerplate", folded
        match = self._pattern.search(text) if self._pattern is not None else None
        return ("caption_boilerplate", match[0][:100]) if match else None

    def _unsafe(self, text: str) -> tuple[str, str] | None:
        if not self._terms:
            return None
        words = _WORDS.findall(fold(text))
        for first in range(len(words)):
            for stop in range(first + 1, min(first + self._term_words, len(words)) + 1):
                term = " ".join(words[first:stop])
                if term in self._terms:
                    return "caption_unsafe", term
        return None

    def _other_language(self, language: str) -> tuple[str, str] | None:
        if language and self._languages and language not in self._languages:
            return "caption_language", f"{language} is not in {','.join(sorted(self._languages))}"
        return None


def file_name_like(text: str) -> tuple[str, str] | None:
    """Return reason and detail if the whole caption is the name of an image file, the counter of a
    camera or phone ("DSC00012"), or an identifier; else None."""
    if len(text) > MAX_FILE_NAME_CHARS:
        return None
    for pattern in (_PICTURE_FILE, _CAMERA, _IDENTIFIER):
        if pattern.fullmatch(text):
            return "caption_file_name", text
    return None


@lru_cache(maxsize=4)
def read_boilerplate(path: Path) -> tuple[frozenset[str], re.Pattern[str] | None]:
    """Read whole captions, compared without case and punctuation, and after "re:" regular
    expressions that are searched for in captions. DataError names the line that is no regular
    expression."""
    phrases, patterns = set(), []
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        if line.startswith("re:"):
            try:
                re.compile(line[3:])
            except re.error as error:
                raise DataError(
                    f"{path}, line {number}: not a regular expression: {error}"
                ) from error
            patterns.append(f"(?:{line[3:]})")
        elif line.strip() and not line.startswith("#"):
            phrases.add(" ".join(_WORDS.findall(fold(line))))
    joined = re.compile("|".join(patterns), re.IGNORECASE) if patterns else None
    return frozenset(phrases - {""}), joined


def read_terms(path: Path) -> list[str]:
    """Read terms of one or more words, a term per line, without case and punctuation; "#" begins a
    comment."""
    lines = _read_text(path).splitlines()
    folded = (" ".join(_WORDS.findall(fold(line))) for line in lines if line[:1] != "#")
    return [term for term in folded if term]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error}): save it as UTF-8") from error
