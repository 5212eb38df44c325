"""Folding makes equal what looks equal on a page."""

import html
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_tools.text.entities import decoded
from data_tools.text.fold import fold, normal_characters
from data_tools.text.typography import APOSTROPHES, HYPHENS, QUOTATION_MARKS, TYPED, typed

VALID = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
FORMAT = [char for char in VALID if unicodedata.category(char) == "Cf"] + ["\u034f", "\ufe0f"]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
AMPERSANDS = st.lists(
    st.sampled_from("&amp; &AMP; &#38; &#xFF06; & amp; #38; &a m p; ; &semi; \u00ad \uff06".split())
).map("".join)


def test_every_character_is_in_its_final_form_at_once():
    lines = "\n".join(VALID)  # a line feed combines with nothing
    normal = normal_characters(lines)
    assert normal_characters(normal) == normal
    assert typed(normal) == normal


@settings(max_examples=500)
@given(st.one_of(TEXT, AMPERSANDS, st.tuples(TEXT, AMPERSANDS, TEXT).map("".join)), st.booleans())
@example("&a&#109;p;lt;", False)
@example("&am\u00adp;amp;", False)
@example("&amp&semi;lt&#59;", False)
@example("&#xFF06;#xFF06;lt;", False)
@example("&cro\u00df;", False)
@example("&\uff41mp;", True)
def test_normal_form_of_the_normal_form_is_the_same(text, case_sensitive):
    normal = normal_characters(text, case_sensitive)
    assert normal_characters(normal, case_sensitive) == normal
    assert fold(fold(text)) == fold(text)


@given(TEXT, st.lists(st.tuples(st.integers(0, 30), st.sampled_from(FORMAT))))
def test_characters_that_nobody_sees_do_not_count(text, inserted):
    marked = text
    for place, char in inserted:
        marked = marked[:place] + char + marked[place:]
    assert fold(marked) == fold(text)


@given(st.text("ab '\"-\u00e9\u732b", max_size=20), st.randoms(use_true_random=False))
def test_typesetting_does_not_count(text, random):
    variants = {"'": APOSTROPHES, '"': QUOTATION_MARKS, "-": HYPHENS}
    typeset = "".join(random.choice(variants.get(char, char)) for char in text)
    assert fold(typeset) == fold(text)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20), st.integers(0, 4))
def test_escaping_does_not_count(text, times):
    escaped = text
    for _ in range(times):
        escaped = html.escape(escaped)
    assert fold(escaped) == fold(text)
    assert fold("".join(f"&#{ord(char)};" for char in text)) == fold(text)


def test_no_character_stands_for_two():
    assert len(TYPED) == len(APOSTROPHES) + len(QUOTATION_MARKS) + len(HYPHENS) + 4


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("&amp;" * 3_000, "&" * 3_000),
        ("&" + "amp;" * 300_000, "&"),
        ("&#38;" + "#38;" * 300_000, "&"),
        ("&" * 1_000_000 + ";", "&" * 1_000_000 + ";"),
        ("&a;" * 300_000, "&a;" * 300_000),
    ],
)
def test_hostile_entities_take_no_long_time(text, plain):
    assert decoded(text) == plain
