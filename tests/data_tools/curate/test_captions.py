from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.config import CurateConfig
from data_tools.curate.captions import CaptionRules, plain, repaired
from data_tools.tables.schema import DataError


def fate(caption: str, **settings: object) -> tuple[str, str]:
    (judged,) = CaptionRules(CurateConfig(**settings)).judge([caption])  # type: ignore[arg-type]
    return judged.reason, judged.detail


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ("a red bird", "a red bird"),
        ("  a\t red \n bird\u00a0", "a red bird"),
        ("caf\u00c3\u00a9 \u00e2\u20ac\u0153noir\u00e2\u20ac\u009d", "caf\u00e9 \u201cnoir\u201d"),
        ("Tom &amp; Jerry", "Tom & Jerry"),
        ("&amp;eacute;t&amp;eacute;", "\u00e9t\u00e9"),
        ("<b>bold</b> and <a href='x'>linked</a>", "bold and linked"),
        ("&lt;p&gt;escaped&lt;/p&gt; tags", "escaped tags"),
        ("<script>alert(1)</script>a bird<style>b{}</style>", "a bird"),
        ("a<br/>b<!-- no\ncomment -->c", "a b c"),
        ("I <3 birds, 2 < 3 > 1", "I <3 birds, 2 < 3 > 1"),
        ("\u201ccurly\u201d \ufb01ne \uff21", "\u201ccurly\u201d \ufb01ne \uff21"),
        ("e\u0301", "\u00e9"),
        ("a \x1b[31mred\x00 bird", "a red bird"),
        ("", ""),
    ],
)
def test_repair(found, wanted):
    assert repaired(found) == wanted


@given(st.text(max_size=300))
def test_a_repaired_caption_is_one_clean_line(text):
    clean = repaired(text)
    assert clean == plain(clean) and "\n" not in clean


@pytest.mark.timeout(60)  # a pattern that goes back over all it read takes minutes
def test_hostile_text_is_not_worked_on_for_long():
    for text in ("<" * 200_000, "<a " * 60_000, "&amp;" * 60_000, "<script>" * 20_000):
        repaired(text)
        fate(text)
    fate("9" * 999 + "x")
    fate("IMG " + "1 " * 400 + "x")


@pytest.mark.parametrize(
    "caption",
    ["IMG_1234.jpg", "DSC00012", "dsc_0001 (2)", "P1010023", "photo.PNG", "dscn_001",
     "Screenshot 2021-03-04 at 10.22.33", "3f2a9c1d5b7e", "20190412_181530",
     "b7e23ec2-9af2-4b3c-8e1f-0a1b2c3d4e5f",
     "some-long-file_name%20here.jpeg", "IMG-20200101-WA0003.jpg"],
)  # fmt: skip
def test_file_names_are_told(caption):
    assert fate(caption) == ("caption_file_name", caption)
    assert fate(caption, drop_file_names=False) == ("", "")


@pytest.mark.parametrize(
    "caption",
    ["P-51 Mustang", "a photo of 12 birds", "sunset at the beach.", "Boeing 747", "1984", "USB 2.0",
     "deadbeef", "a file called img_1.jpg on a desk", "SAM 7 missile", "C-3PO and R2-D2"],
)  # fmt: skip
def test_what_only_resembles_a_file_name_stays(caption):
    assert fate(caption) == ("", "")


@pytest.mark.parametrize(
    ("caption", "detail"),
    [
        ("Image not available", "image not available"),
        ("[Placeholder]", "placeholder"),
        ("Photo 3 of 12", "Photo 3 of 12"),
        ("Click to enlarge the picture", "Click to enlarge"),
        ("https://example.org/a.jpg?x=1", "https://example.org/a.jpg?x=1"),
        ("N/A", "n a"),
    ],
)
def test_boilerplate_is_told(caption, detail):
    reason = ("caption_boilerplate", detail)
    assert fate(caption) in (reason, ("caption_file_name", caption))
    assert fate(caption, drop_file_names=False) == reason
    assert fate(caption, drop_file_names=False, drop_boilerplate=False) == ("", "")


def test_boilerplate_inside_a_caption_stays():
    assert fate("a placeholder text on an image of a door") == ("", "")


def test_a_boilerplate_list_of_ones_own(tmp_path):
    own = tmp_path / "mine.txt"
    own.write_text("# mine\nstock vector\nre:^EPS ?10\n\n")
    config = {"boilerplate_path": str(own)}
    assert fate("Stock Vector.", **config) == ("caption_boilerplate", "stock vector")
    assert fate("eps10 file", **config) == ("caption_boilerplate", "eps10")
    assert fate("placeholder", **config) == ("", "")
    broken = tmp_path / "broken.txt"
    broken.write_text("good\nre:(\n")
    with pytest.raises(DataError, match="broken.txt, line 2: not a regular expression"):
        fate("a bird", boilerplate_path=str(broken))


def test_lengths_in_characters_and_words():
    assert fate("\u732b\u732b\u732b", min_caption_chars=3) == ("", "")
    assert fate("abc", min_caption_chars=4) == ("caption_short", "3 characters < 4")
    assert fate("abc", max_caption_chars=2) == ("caption_long", "3 characters > 2")
    assert fate("two words", min_caption_words=3) == ("caption_few_words", "2 words < 3")
    assert fate("one two three", max_caption_words=2) == ("caption_many_words", "3 words > 2")


def test_languages():
    german = "ein kleiner brauner Hund am Strand"
    assert fate(german, languages=["en", "fr"]) == ("caption_language", "de is not in en,fr")
    assert fate(german, languages=["de"]) == ("", "")
    assert fate("kleiner brauner Hund", languages=["en"]) == ("", ""), "three words tell nothing"


def test_unsafe_terms_are_whole_words(tmp_path):
    terms = tmp_path / "terms.txt"
    terms.write_text("# listed by us\nass\nBlue-Bird Pie\n")
    config = {"unsafe_terms_path": str(terms)}
    assert fate("a smart Ass!", **config) == ("caption_unsafe", "ass")
    assert fate("the blue bird pie, sliced", **config) == ("caption_unsafe", "blue bird pie")
    assert fate("a class of grass", **config) == ("", "")
    assert fate("a blue bird", **config) == ("", "")
