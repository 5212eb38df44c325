"""Captions -> CLIP's byte-pair token ids (Radford et al. 2021: lower-cased, 49,152 merges and
bytes, two special tokens).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import ftfy
import instant_clip_tokenizer
import numpy as np

from data_tools.ground.entities import unescaped

if TYPE_CHECKING:
    import torch

START_OF_TEXT = 49406
END_OF_TEXT = 49407

_WHITESPACE = re.compile(r"\s+")
# Printable ASCII without "&" (no HTML entity), with tab and newline: ftfy and html.unescape leave
# such text as it is, and it is most of the captions; they would cost 25 us of the interpreter lock
# each.
_PLAIN = re.compile(r"[\t\n -%'-~]*")


def clean_caption(text: str) -> str:
    """CLIP's cleaning: mojibake repaired, HTML entities resolved (twice), runs of white space one
    space, ends stripped.
    """
    if not _PLAIN.fullmatch(text):
        text = unescaped(unescaped(ftfy.fix_text(text)))
    return _WHITESPACE.sub(" ", text.strip()).strip()


class Tokenizer:
    """Tokenizer(context_length)(texts) -> int64 (B, context_length): start, tokens, end, zeros.
    Safe to call from threads.

    A text that is too long is cut, its end token kept. The text tower pools at the end token, the
    largest id.
    """

    def __init__(self, context_length: int = 77) -> None:
        if context_length < 3:
            raise ValueError(f"context_length is {context_length}: start, one token and end need 3")
        self.context_length = context_length
        self._tokenizer = instant_clip_tokenizer.Tokenizer()

    def __call__(self, texts: list[str]) -> torch.Tensor:
        """Token ids of raw texts; they are cleaned here."""
        import torch  # not in workers, which need `encode_cleaned` only

        return torch.from_numpy(
            self.encode_cleaned([clean_caption(text) for text in texts]).astype(np.int64)
        )

    def encode_cleaned(self, texts: list[str]) -> np.ndarray:
        """uint16 (B, context_length) of texts that went through `clean_caption`."""
        if not texts:
            return np.zeros((0, self.context_length), dtype=np.uint16)
        return self._tokenizer.tokenize_batch(texts, context_length=self.context_length)
