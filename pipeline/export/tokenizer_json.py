"""tokenizer.json: CLIP's vocabulary with this project's cleaning, in steps that the format knows.

It has neither ftfy nor html.unescape, but can replace what they replace. Missing are mojibake,
whose repair no table can express, and entities whose characters are neither Latin letters nor
punctuation. Each of the steps, some 400, costs about a microsecond a text.
"""

from __future__ import annotations

import html.entities
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ftfy.chardata

from pipeline.export.tokenizer_files import END, START, WORD_END, vocabulary
from pipeline.model.text import EOT_TOKEN

_TERMINAL_COLOURS = r"\x1b\[(?:\d|;)*[a-zA-Z]"
# ftfy's list, without what is white space.
_CONTROLS = r"[\x00-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufff9-\ufffc\ufeff]"
_C1_CONTROLS = range(0x80, 0xA0)
_AMPERSAND = ord("&")
# Lowercase goes letter by letter, but a sigma that ends a word has a form of its own. Signs such as
# an accent or an apostrophe end no word.
_CASED, _IGNORED = r"[\p{Lu}\p{Ll}\p{Lt}]", r"[\p{Mn}\p{Me}\p{Cf}\p{Lm}\p{Sk}'.:·’‘]"
_FINAL_SIGMA = rf"(?<={_CASED}|{_CASED}{_IGNORED})Σ(?!{_IGNORED}*{_CASED})"
# CLIP's words, without its two special tokens: they are words here, so that no text ends itself.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def write_tokenizer_json(folder: Path) -> None:
    """tokenizer.json. Read it by AutoTokenizer, or with it by CLIPProcessor: transformers 5's own
    CLIPTokenizer takes only the vocabulary out of it."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        processors,
    )

    vocab, merges = vocabulary()
    model = models.BPE(vocab=vocab, merges=merges, end_of_word_suffix=WORD_END, unk_token=END)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = cleaning()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Replace(WORD_END, " "), decoders.Strip(" ", 0, 1)]
    )
    tokenizer.post_processor = processors.RobertaProcessing(
        (END, EOT_TOKEN), (START, EOT_TOKEN - 1), trim_offsets=False, add_prefix_space=False
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in (START, END)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def cleaning() -> Any:
    """tokenizers' normalizer that does what `clean_caption` does, and lower-cases."""
    from tokenizers import Regex, normalizers

    def by_pattern(pattern: str, content: str) -> Any:
        return normalizers.Replace(Regex(pattern), content)

    return normalizers.Sequence(
        [
            *(by_pattern(*entity) for entity in _entities()),
            *(normalizers.Replace(*pair) for pair in _characters()),
            by_pattern(ftfy.chardata.SINGLE_QUOTE_RE.pattern, "'"),
            by_pattern(ftfy.chardata.DOUBLE_QUOTE_RE.pattern, '"'),
            by_pattern(_TERMINAL_COLOURS, ""),
            by_pattern(_CONTROLS, ""),
            normalizers.NFC(),
            by_pattern(r"\s+", " "),
            by_pattern(_FINAL_SIGMA, "ς"),
            normalizers.Lowercase(),
        ]
    )


def _characters() -> Iterator[tuple[str, str]]:
    """What ftfy replaces one by one: C1 controls as browsers read them, ligatures, widths."""
    for number in _C1_CONTROLS:
        meant = bytes([number]).decode("cp1252", errors="ignore")
        if meant:
            yield chr(number), meant
    for table in (ftfy.chardata.LIGATURES, ftfy.chardata.WIDTH_MAP):
        for number, plain in table.items():
            yield chr(number), plain


def _entities() -> Iterator[tuple[str, str]]:
    """(pattern, character), the ampersand first: it may hide another, as in &amp;quot;."""
    names: dict[int, list[str]] = {ord("'"): ["apos"]}
    for name, number in html.entities.name2codepoint.items():
        if number < 0x250 or 0x2000 <= number < 0x2130:
            names.setdefault(number, []).append(name)
    ampersand = "|".join(_spellings(_AMPERSAND, [*names.pop(_AMPERSAND), "AMP"]))
    yield f"&(?:(?:amp|AMP|#0*38|#[xX]0*26);)*(?:{ampersand})", "&"
    # The longest first: without a semicolon one name may be the beginning of another.
    for number in sorted(names, key=lambda key: -max(map(len, names[key]))):
        yield f"&(?:{'|'.join(_spellings(number, names[number]))})", chr(number)


def _spellings(number: int, names: list[str]) -> Iterator[str]:
    for name in names:
        # Old names, such as &copy, end without a semicolon as well.
        yield name + (";?" if name in html.entities.html5 else ";")
    yield f"#0*{number}(?:;|(?![0-9]))"
    yield f"#[xX]0*(?i:{number:x})(?:;|(?![0-9a-fA-F]))"
