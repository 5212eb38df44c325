"""Token ids are CLIP's own, the fast path for plain text included."""

from __future__ import annotations

import html
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ftfy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.samples.tokenizer import END_OF_TEXT, START_OF_TEXT, Tokenizer, clean_caption

# Ids of open_clip_torch 3.3.0's SimpleTokenizer at context length 77, padding left out.
GOLDEN = json.loads((Path(__file__).parent / "golden_tokens.json").read_text())
TOKENIZERS = {length: Tokenizer(length) for length in (3, 4, 8, 32, 77)}
TOKENIZER = TOKENIZERS[77]
LENGTHS = st.sampled_from(sorted(TOKENIZERS))


@pytest.mark.parametrize(
    "row", GOLDEN, ids=[row["text"][:20].encode("unicode_escape").decode() for row in GOLDEN]
)
def test_ids_are_those_of_the_field(row):
    ids = TOKENIZER([row["text"]])[0].tolist()
    assert ids == row["ids"] + [0] * (77 - len(row["ids"]))


def slow_clean(text):
    """CLIP's cleaning without a fast path."""
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return re.sub(r"\s+", " ", text).strip()


# Text of all ASCII, of ASCII that ftfy and html act upon, and of anything.
TEXT = st.one_of(
    st.text(st.characters(max_codepoint=127), max_size=60),
    st.lists(
        st.sampled_from(["&amp;", "&", "lt;", "\x1b[1m", "\r\n", " ", "it's", "\x7f", "<b>", "a"])
    ).map("".join),
    st.text(max_size=40),
)


@pytest.mark.slow
@settings(max_examples=1000)
@given(TEXT)
def test_the_fast_path_for_plain_text_is_exact(text):
    assert clean_caption(text) == slow_clean(text)


@given(TEXT, LENGTHS)
def test_rows_are_start_tokens_end_zeros(text, context_length):
    ids = TOKENIZERS[context_length]([text])
    assert ids.dtype == torch.int64 and ids.shape == (1, context_length)
    row = ids[0].tolist()
    end = row.index(END_OF_TEXT)
    assert row[0] == START_OF_TEXT and row.count(START_OF_TEXT) == row.count(END_OF_TEXT) == 1
    assert all(0 <= token < START_OF_TEXT for token in row[1:end])
    assert not any(row[end + 1 :])
    assert max(row) == END_OF_TEXT  # the tower may find the end by argmax


@given(TEXT, LENGTHS)
def test_truncation_keeps_the_beginning_and_the_end_token(text, context_length):
    full = TOKENIZER([text])[0].tolist()
    length = full.index(END_OF_TEXT) + 1
    short = TOKENIZERS[context_length]([text])[0].tolist()
    if length <= context_length:
        assert short == full[:context_length]
    else:
        assert short == full[: context_length - 1] + [END_OF_TEXT]


def test_special_tokens_cannot_be_written_in_a_caption():
    """A caption that spells the end token must not end the caption for the text tower."""
    row = TOKENIZER(["before <|endoftext|> after <|startoftext|>"])[0].tolist()
    assert row.count(END_OF_TEXT) == 1 and row.count(START_OF_TEXT) == 1
    assert row.index(END_OF_TEXT) > 10


def test_token_zero_inside_a_caption_does_not_look_like_padding():
    """An exclamation mark before other punctuation is id 0, the padding's."""
    row = TOKENIZER(["wow!¿"])[0].tolist()
    assert 0 in row[: row.index(END_OF_TEXT)]


def test_threads_give_the_same_ids():
    texts = [row["text"] for row in GOLDEN] * 5
    expected = TOKENIZER(texts)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda start: TOKENIZER(texts[start::8]), range(8)))
    for start, part in enumerate(parts):
        assert torch.equal(part, expected[start::8])


def test_no_texts():
    assert TOKENIZER([]).shape == (0, 77)


def test_a_context_without_room_is_refused():
    with pytest.raises(ValueError, match="context_length is 2"):
        Tokenizer(2)


def test_encoding_cleaned_text_is_compact():
    assert TOKENIZER.encode_cleaned(["a cat"]).dtype == np.uint16
