"""Numbers of thousands of digits in place of a character raise nothing; all else is html's."""

from __future__ import annotations

import html

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.ground.entities import unescaped
from pipeline.data.samples.tokenizer import clean_caption

PIECES = [
    "&",
    "#",
    "0",
    "65",
    "9",
    "x41",
    ";",
    "amp",
    "a",
    " ",
    "&#0065;",
    "&#99999999;",
    "&#x110000",
]


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12).map("".join))
def test_it_is_html_unescape(text):
    assert unescaped(text) == html.unescape(text)


@pytest.mark.parametrize("number", ["9" * 5000, "0" * 5000 + "65", "0" * 9000, "1" + "0" * 9000])
@pytest.mark.parametrize("end", [";", "", " dog"])
def test_no_number_is_too_long(number, end):
    with pytest.raises(ValueError):
        html.unescape(f"&#{number}{end}")
    short = number.lstrip("0")[:12] or "0"
    assert unescaped(f"a &#{number}{end}") == html.unescape(f"a &#{short}{end}")
    assert clean_caption(f"a &amp;#{number}{end}") == clean_caption(f"a &amp;#{short}{end}")
