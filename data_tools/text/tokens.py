"""Cuts texts into tokens, at every place where a match may begin or end.

There is a cut between two characters unless they belong to one word. Letters, digits and their
marks form words; a space, a hyphen or a quotation mark is a token of its own; in scripts without
spaces (Chinese, Japanese, Thai, ...) every letter is a token, with the vowel signs that follow it.
The cuts depend on neighbouring characters only. So a query is in a caption, bounded on both sides,
if and only if its tokens are there one after the other.
"""

from __future__ import annotations

import functools
import unicodedata
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_tools.text.entities import ENTITY
from data_tools.text.fold import normal_characters

# Thai, Lao, Myanmar, Khmer, kana, Han (with extensions and compatibility forms)
UNSPACED_SCRIPTS = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
WORD, MARK, UNSPACED, BREAK = 1, 2, 4, 8
NEWLINE = 10
APOSTROPHE = bytes(range(256)).replace(b"`", b"'")
LOWER_CASE = APOSTROPHE.lower()


@dataclass(frozen=True)
class Tokens:
    """The tokens of several texts, one after the other. Every text ends with the token "\\n"."""

    values: pa.Array
    """binary: UTF-8, normalised."""
    row: np.ndarray
    """int64: for each token the index of its text."""


def cut(texts: pa.Array, case_sensitive: bool) -> Tokens:
    """Tokens of `texts` (string, no nulls). Their only white space must be single spaces inside;
    `data_tools.match.pool.clean.single_spaced` makes them so."""
    lines = pc.binary_join_element_wise(texts, "", "\n")
    offsets = np.frombuffer(lines.buffers()[1], np.int32, len(lines) + 1, lines.offset * 4)
    data = lines.buffers()[2]
    text = memoryview(data)[offsets[0] : offsets[-1]] if data is not None else memoryview(b"")
    content = bytes(text)
    # case folding and cutting take 1 us per caption if all are ASCII, else 10 us
    is_plain = content.isascii() and not ENTITY.search(content)
    cut_text = _cut_plain if is_plain else _cut_unicode
    return cut_text(content, case_sensitive)


def _cut_plain(content: bytes, case_sensitive: bool) -> Tokens:
    """`_cut_unicode` of ASCII without entities."""
    normal = content.translate(APOSTROPHE if case_sensitive else LOWER_CASE)
    classes = _classes()[:128][np.frombuffer(normal, np.uint8)]
    at = np.flatnonzero(_cuts(classes)).astype(np.int32)
    return _tokens(normal, at)


def _cut_unicode(content: bytes, case_sensitive: bool) -> Tokens:
    text = _normal_lines(content.decode(), case_sensitive)
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)
    starts = np.concatenate([[0], np.cumsum(widths)])
    at = starts[np.flatnonzero(_cuts(_classes()[points]))].astype(np.int32)
    return _tokens(text.encode(), at)


def _normal_lines(lines: str, case_sensitive: bool) -> str:
    """`data_tools.text.fold.fold` of every line, without case folding if `case_sensitive`.

    All lines are normalised at once, which is right because a line feed combines with nothing.
    """
    normal = normal_characters(lines, case_sensitive)
    return "\n".join([" ".join(line.split()) for line in normal.split("\n")])


def _tokens(normal: bytes, at: np.ndarray) -> Tokens:
    buffers = [None, pa.py_buffer(at), pa.py_buffer(normal)]
    values = pa.Array.from_buffers(pa.binary(), len(at) - 1, buffers)
    ends_row = np.frombuffer(normal, np.uint8)[at[:-1]] == NEWLINE
    return Tokens(values, np.cumsum(ends_row) - ends_row)


def _cuts(classes: np.ndarray) -> np.ndarray:
    """bool (characters + 1): whether there is a cut before each character; always after the
    last."""
    cuts = np.ones(len(classes) + 1, bool)
    left, right = classes[:-1], classes[1:]
    either = left | right
    unspaced = either & UNSPACED != 0
    joined = np.where(unspaced, right & MARK != 0, left & right & WORD != 0)
    joined &= either & BREAK == 0
    np.logical_not(joined, out=cuts[1:-1])
    return cuts


@functools.cache
def _classes() -> np.ndarray:
    """uint8 flags of every code point: WORD for letters, marks and numbers, MARK, UNSPACED, and
    BREAK for the line feed between texts. Takes 0.2 s, once."""
    classes = np.zeros(0x110000, np.uint8)
    for point in range(0x110000):
        kind = unicodedata.category(chr(point))[0]
        if kind in "LMN":
            classes[point] = WORD | MARK if kind == "M" else WORD
    for first, last in UNSPACED_SCRIPTS:
        classes[first : last + 1] |= UNSPACED
    classes[NEWLINE] = BREAK
    return classes
