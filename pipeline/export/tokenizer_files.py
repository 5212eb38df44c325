"""CLIP's vocabulary as vocab.json and merges.txt, rebuilt from the tokenizer that is installed.

instant-clip-tokenizer holds the vocabulary in its binary and shows it only through `decode`, which
replaces bytes that are not a whole character. The bytes of a token show when its neighbours
complete it, and the merge that made a token is what byte-pair encoding with all earlier merges
leaves of it.
"""

from __future__ import annotations

import functools
import hashlib
import json
from itertools import product
from pathlib import Path

import instant_clip_tokenizer

from pipeline.export.folder import ExportError, write_json

NUM_BYTE_TOKENS, NUM_TOKENS = 512, 49408
MERGES_SHA256 = "9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a"
"""SHA-256 of merges.txt in openai/clip-vit-base-patch32 and every other model with this
vocabulary."""
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
_REPLACEMENT = "\ufffd"


def byte_letters() -> list[str]:
    """GPT-2's printable letter for each byte: itself where printable, else from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + number) for number, byte in enumerate(others)}
    return [letters[byte] for byte in range(256)]


def byte_order() -> list[int]:
    """The byte of token id i, for i below 256: the printable ones first."""
    letters = byte_letters()
    return sorted(range(256), key=lambda byte: (ord(letters[byte]) >= 256, byte))


@functools.cache
def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(token -> id, merges by rank), in the letters of `byte_letters`."""
    letters = byte_letters()
    singles = [letters[byte] for byte in byte_order()]
    tokens = singles + [single + WORD_END for single in singles]
    merges: list[tuple[str, str]] = []
    ranks: dict[tuple[str, str], int] = {}
    decoder = _Decoder()
    for number in range(NUM_BYTE_TOKENS, NUM_TOKENS - 2):
        content, ends_word = decoder.content(number)
        parts = [letters[byte] for byte in content]
        if ends_word:
            parts[-1] += WORD_END
        pair = _last_merge(parts, ranks)
        ranks[pair] = len(merges)
        merges.append(pair)
        tokens.append(pair[0] + pair[1])
    tokens += [START, END]
    return {token: number for number, token in enumerate(tokens)}, merges


def _last_merge(parts: list[str], ranks: dict[tuple[str, str], int]) -> tuple[str, str]:
    """Byte-pair encoding of one token with the merges before its own leaves two parts."""
    while len(parts) > 2:
        neighbours = zip(parts, parts[1:], strict=False)
        pairs = [(ranks.get(pair, NUM_TOKENS), i) for i, pair in enumerate(neighbours)]
        rank, first = min(pairs)
        if rank == NUM_TOKENS:
            raise ExportError(f"token {''.join(parts)!r} is not made by the merges before it")
        parts = parts[:first] + [parts[first] + parts[first + 1]] + parts[first + 2 :]
    return parts[0], parts[1]


class _Decoder:
    """The bytes of a token, and whether it ends a word."""

    # A lead byte, with continuation bytes, that makes a token's first bytes a character; and
    # continuations that complete its last. C3, E1 and F1 admit any continuation after them; E0, F0,
    # ED and F4 at a token's end admit some only, so three kinds are tried.
    _BEFORE = (b"", b"\xc3", b"\xe1", b"\xe1\x80", b"\xf1", b"\xf1\x80", b"\xf1\x80\x80")
    _AFTER = (b"",) + tuple(
        first + b"\x80" * more for first, more in product((b"\x80", b"\x90", b"\xa0"), range(3))
    )

    def __init__(self) -> None:
        self._tokenizer = instant_clip_tokenizer.Tokenizer()
        self._id_of_byte = {byte: number for number, byte in enumerate(byte_order())}

    def content(self, number: int) -> tuple[bytes, bool]:
        for before, after in product(self._BEFORE, self._AFTER):
            ids = [self._id_of_byte[byte] for byte in before]
            ids += [number] + [self._id_of_byte[byte] for byte in after]
            text = self._tokenizer.decode(ids)
            if _REPLACEMENT not in text:
                whole = text.encode()
                content = whole[len(before) : len(whole) - len(after)]
                # decode writes the end of a word as a space; a space is in no merge.
                return (content[:-1], True) if content.endswith(b" ") else (content, False)
        # What no neighbour completes is U+FFFD itself, which web text is full of.
        return _REPLACEMENT.encode(), self._tokenizer.decode([number]).endswith(" ")


def write_tokenizer_files(folder: Path, context_length: int) -> None:
    """vocab.json, merges.txt, tokenizer_config.json and special_tokens_map.json of transformers.

    Raises ExportError if the merges are not, byte by byte, those that OpenAI's models came with.
    """
    vocab, merges = vocabulary()
    compact = json.dumps(vocab, ensure_ascii=False, separators=(",", ":"))
    (folder / "vocab.json").write_text(compact, encoding="utf-8")
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    content = ("\n".join(lines) + "\n").encode()
    if hashlib.sha256(content).hexdigest() != MERGES_SHA256:
        raise ExportError(
            "instant-clip-tokenizer does not hold CLIP's published vocabulary: install the version "
            "that constraints.txt names"
        )
    (folder / "merges.txt").write_bytes(content)
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    configuration = {
        # With "CLIPTokenizer" transformers 5 would build its own cleaning in place of the one in
        # tokenizer.json.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        # A text that holds "<|endoftext|>" does not end there: it is read as words.
        "split_special_tokens": True,
        # Without it nothing is ever cut, and the position embedding ends after context_length.
        "model_max_length": context_length,
        "errors": "replace",
        "add_prefix_space": False,
        **special,
    }
    write_json(folder / "tokenizer_config.json", configuration)
    write_json(folder / "special_tokens_map.json", special)
