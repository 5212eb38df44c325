"""Texts that libraries clean in their own ways, and how many of them a reader takes as this project
does: measured at every export, for its sentence and its README.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pipeline.export.folder import Probe
from pipeline.model.text import EOT_TOKEN

Reader = Callable[[list[str]], list[list[int]]]
"""Texts -> token ids of each, cut to the context, start and end included."""

ODD_TEXTS: dict[str, tuple[str, ...]] = {
    "typographic quotes": ("the “old” bridge", "children’s drawing", "‘a’ „b“ – c…"),
    "HTML entities": (
        "salt &amp; pepper",
        "&lt;b&gt;bold&lt;/b&gt;",
        "it&#39;s &amp;quot;on&quot;",
    ),
    "HTML entities of letters": (
        "caf&eacute; &copy;2024",
        "20&deg;C",
        "&#x201C;hi&#x201D;&nbsp;x",
    ),
    "rare HTML entities": ("&alpha; Centauri", "fun &#128512;"),
    "mojibake": ("cafÃ© in MÃ¼nchen", "the womanâ€™s hat", "â€œquotedâ€\x9d"),
    "ligatures": ("ﬁreﬂy oﬃce", "Ǆep ĳs"),
    "full-width letters": ("ＦＵＬＬ　ｗｉｄｔｈ", "１２３％"),
    "half-width katakana": ("ﾃｽﾄ ｶﾒﾗ",),
    "control characters": ("nul\x00l\x07bell", "\x1b[1mbold\x1b[0m", "\ufeffbyte order mark"),
    "final sigma": ("ΟΔΟΣ ΑΣ", "ΣΙΣΥΦΟΣ"),
    "accents apart": ("cafe\u0301", "Å\u0323ngstro\u0308m"),
    "capitals": ("STRASSE Straße İstanbul", "ǅ ÄÖÜ Ω"),
    "white space": ("a\u00a0b\u2003c", "  lead\t\tand\r\ntrail  ", "zero\u200bwidth"),
    "emoji": ("😀👨‍👩‍👧 party 🇫🇷",),
    "scripts without spaces": ("日本語のキャプション", "ภาพถ่ายแมว"),
    "marks and numbers": ("3,000.50$ -- 10:30!", "a_b-c/d #tag @me", "½ ① m²"),
    "contractions": ("don't DON'T we'LL", "rock 'n' roll 's"),
    "special tokens as words": ("<|endoftext|> hello", "a <|startoftext|> b"),
    "open_clip's special tokens": ("<end_of_text> hello", "a <start_of_text> b"),
    "an empty text": ("", " "),
    "longer than the context": ("word " * 90, "x" * 500),
}
"""Texts by what is odd about them."""


@dataclass(frozen=True)
class TextComparison:
    reader: str
    alike: dict[str, int]
    """Per kind of ODD_TEXTS, how many have this project's token ids."""
    lowest_cosine: float
    """Between the features of a text read in both ways."""

    @property
    def total(self) -> int:
        return sum(self.alike.values())

    @property
    def other_kinds(self) -> list[str]:
        """Kinds of which a text is read otherwise."""
        return [kind for kind, number in self.alike.items() if number < len(ODD_TEXTS[kind])]

    def sentence(self) -> str:
        count = sum(len(texts) for texts in ODD_TEXTS.values())
        same = f"{self.reader} reads {self.total} of {count} odd texts with the same token ids"
        if self.total == count:
            return same
        kinds = self.other_kinds
        others = ", ".join(kinds) if len(kinds) <= 3 else f"{len(kinds)} kinds of text"
        return (
            f"{same} (others: {others}; cosine of their features at least {self.lowest_cosine:.3f})"
        )


def compare_texts(reader: str, read: Reader, probe: Probe) -> TextComparison:
    texts = [text for kind in ODD_TEXTS.values() for text in kind]
    ours = probe.tokenizer(texts)
    theirs = torch.zeros_like(ours)
    for row, ids in zip(theirs, read(texts), strict=True):
        row[: len(ids)] = torch.tensor(ids)
    same = [
        up_to_end(a) == up_to_end(b) for a, b in zip(ours.tolist(), theirs.tolist(), strict=True)
    ]
    alike, start = {}, 0
    for kind, group in ODD_TEXTS.items():
        alike[kind] = sum(same[start : start + len(group)])
        start += len(group)
    cosines = (probe.text_features(ours) * probe.text_features(theirs)).sum(1)
    return TextComparison(reader, alike, cosines.min().item())


def up_to_end(ids: list[int]) -> list[int]:
    """Without padding, be it zeros or further end tokens."""
    return ids[: ids.index(EOT_TOKEN) + 1] if EOT_TOKEN in ids else ids
